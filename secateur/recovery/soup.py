"""Several fine-tuned copies of one sparse network, averaged into one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from secateur.recovery.normalise import RecalibrateBatchNorm


@dataclass(frozen=True, slots=True)
class Soup:
    """The averaged network, and what went in.

    Args:
        module: a new network.
        ingredients: indices of the networks that were averaged, in the order in which they went in.
        score: of the averaged network; None where nothing was scored.
    """

    module: nn.Module
    ingredients: tuple[int, ...]
    score: float | None = None


@dataclass(frozen=True)
class SparseModelSoup:
    """The mean of the weights of networks that were fine-tuned from one pruned network, in different ways.

    Zimmer et al.: Sparse Model Soups (arXiv 2306.16788): after a pruning step, copies are retrained with other seeds,
    weight decays or learning rates; because they share the mask, their mean has it too, and the next step prunes the
    mean. Networks with different masks are refused: their mean would be denser than each.

    "uniform" averages all. "greedy" (Wortsman et al.: Model Soups, arXiv 2203.05482, recipe 1) takes the networks from
    the best down and keeps each that does not lower the score of the mean: so never worse than the best on the data of
    the score.

    Args:
        kind: which networks go in.
    """

    kind: Literal["uniform", "greedy"] = "uniform"

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "greedy"):
            raise ValueError(f'kind must be "uniform" or "greedy", got {self.kind!r}')

    def __call__(
        self,
        modules: Sequence[nn.Module],
        *,
        score: Callable[[nn.Module], float] | None = None,
        calibration: Sequence[Any] = (),
        zeros: Mapping[str, Bool[Tensor, "*shape"]] | None = None,
    ) -> Soup:
        """Average the networks into a new one; they are not changed.

        Args:
            modules: networks of one shape; their states are averaged in float64, integers must agree or are those of
                the first.
            score: how good a network is on data that no training sees, higher is better; "greedy" needs it.
            calibration: batches on which the batch norms of each mean are calibrated again before it is scored; none:
                their statistics are averaged.
            zeros: name of each pruned parameter -> bool, True where it is 0; None: the zeros of the first network in
                weights of two dimensions or more, which then all networks must have, and no others.

        Raises:
            ValueError: there are no networks, their tensors or masks differ, a score is missing or NaN.
        """
        _check(modules, zeros)
        if self.kind == "uniform":
            everything = tuple(range(len(modules)))
            module = _mean(modules, everything, calibration)
            return Soup(module, everything, None if score is None else _scored(score, module))
        if score is None:
            raise ValueError("a greedy soup needs a score")
        alone = [_scored(score, module) for module in modules]
        order = sorted(range(len(modules)), key=lambda index: -alone[index])
        best = Soup(copy.deepcopy(modules[order[0]]), (order[0],), alone[order[0]])
        for index in order[1:]:
            ingredients = (*best.ingredients, index)
            module = _mean(modules, ingredients, calibration)
            value = _scored(score, module)
            assert best.score is not None
            if value >= best.score:
                best = Soup(module, ingredients, value)
        return best


def _scored(score: Callable[[nn.Module], float], module: nn.Module) -> float:
    value = float(score(module))
    if value != value:
        raise ValueError("the score of a network is NaN")
    return value


@torch.no_grad()
def _mean(modules: Sequence[nn.Module], ingredients: Sequence[int], calibration: Sequence[Any]) -> nn.Module:
    result = copy.deepcopy(modules[ingredients[0]])
    if len(ingredients) == 1:
        return result
    states = [modules[index].state_dict() for index in ingredients]
    for name, value in result.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            total = torch.zeros_like(value, dtype=torch.float64)
            for state in states:
                total += state[name].to(total)
            value.copy_(total / len(states))
    return RecalibrateBatchNorm()(result, calibration) if len(calibration) else result


def _check(modules: Sequence[nn.Module], zeros: Mapping[str, Tensor] | None) -> None:
    """Raise ValueError unless the networks have tensors of the same names and shapes, and the same mask."""
    if not modules:
        raise ValueError("a soup needs at least one network")
    first = modules[0].state_dict()
    unknown = [name for name in zeros or {} if name not in first]
    if unknown:
        raise ValueError(f"zeros name {unknown}, which the networks have not")
    for index, module in enumerate(modules):
        state = module.state_dict()
        different = [name for name in first.keys() | state.keys() if not _alike(first.get(name), state.get(name))]
        if different:
            raise ValueError(f"network {index} and the first one differ in {sorted(different)}")
        for name, wrong in _broken(module, modules[0], zeros):
            raise ValueError(f"network {index} has another mask: {name!r} differs in {wrong} zeros")


def _broken(module: nn.Module, first: nn.Module, zeros: Mapping[str, Tensor] | None) -> Iterator[tuple[str, int]]:
    """Names of parameters whose zeros are not those that they should be, and how many are not."""
    if zeros is not None:
        state = module.state_dict()
        wrong = {name: (state[name] != 0) & zero.to(state[name].device) for name, zero in zeros.items()}
    else:
        pairs = zip(module.named_parameters(), first.parameters(), strict=True)
        wrong = {name: (mine == 0) != (its == 0).to(mine.device) for (name, mine), its in pairs if mine.dim() > 1}
    yield from ((name, int(where.sum())) for name, where in wrong.items() if bool(where.any()))


def _alike(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return type(first) is type(second)
    return first.shape == second.shape and first.dtype == second.dtype
