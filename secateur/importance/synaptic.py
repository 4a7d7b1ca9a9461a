"""Importance before training: what keeps signals and gradients flowing through an untrained network.

SNIP (Lee et al. 2019, arXiv 1810.02340) is `Taylor(reduce="elements")` with all data in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from secateur.allocation import Budget
from secateur.derivatives import batches_of, mean_over_losses, stream_gradients
from secateur.granularity import Weights
from secateur.hessian_products import DerivativeMethod, stream_hessian_vector_products
from secateur.importance.objective import Objective, differentiable, required
from secateur.selection import keep_top
from secateur.units import Keep, Prunable, Scores, UnitSums

_PIECE = 1 << 20
"""Units that are looked at at a time."""


@runtime_checkable
class Network(Prunable, Protocol):
    """A `Prunable` that is, or wraps, a module, and runs it under its masks when it is called."""

    module: nn.Module | None

    def __call__(self, *inputs: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SynFlow:
    """w dR/dw of R = sum of the outputs for an input of ones under absolute weights, pruned in many small steps.

    Tanaka et al. 2020 (arXiv 2006.05467, eq. 6 and algorithm 1): no data. All parameters and buffers are absolute while
    it runs, and given back bit for bit; layers are in evaluation mode. In a network that is linear under them (ReLU, no
    biases) each layer's scores sum to R, and pruning step by step, to a density of share^(r / rounds) at round r, never
    empties a layer before it has to.

    Units that a round removed score below 0, the earlier the lower, and kept ones at least 0; so that the best `share`
    of all are what the rounds kept, for every smaller `share` the last round's scores decide.

    Besides the scores, which for single weights are a copy of them, a byte a weight is held and the gradients of one
    layer; in several rounds of single weights a copy too, for those that rounds removed are 0 meanwhile.

    Args:
        input_shape: of one input, with the batch's dimension of 1 first.
        share: of the units that is kept in the end: that of the budget.
        rounds: 100 in the paper; 1 is one shot, which may cut a network through.
    """

    input_shape: tuple[int, ...]
    share: float
    rounds: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.rounds < 1:
            raise ValueError(f"share in (0, 1] and rounds >= 1 are needed, got {self.share} and {self.rounds}")

    def score(self, target: Network, calibration: object = None) -> Scores:
        """(size,) scores of each group; the calibration is not used.

        Raises:
            ValueError: R or a gradient is not finite (a deep network may need float64).
        """
        from secateur.training.weights import evaluating  # with it comes Lightning, which is slow to import

        module = _module_of(target, self)
        groups = target.groups()
        fate = _Fate(self.rounds)
        weights = target if isinstance(target, Weights) else None
        scores: Scores = {}
        with (
            absolute(module, keep_values=weights is not None and self.rounds > 1),
            evaluating(module),
            torch.enable_grad(),
        ):
            for number in range(1, self.rounds + 1):
                scores.clear()
                scores |= fate.written_into(self._flow(target, {} if weights is not None else fate.masks()))
                left = keep_top(scores, groups, Budget(share=self.share ** (number / self.rounds)))
                fate.remove(left, number)
                if weights is not None and number < self.rounds:
                    # For weights a mask would be a copy, and what it masks another.
                    weights.write_zeros(left)
                del left
        return fate.written_into(scores)

    def _flow(self, target: Network, masks: Keep) -> Scores:
        sums = UnitSums(target.groups())
        with differentiable(target) as tensors:
            like = next(iter(tensors.values()))
            ones = torch.ones(self.input_shape, dtype=like.dtype, device=like.device)
            soft = {name: mask.to(like) for name, mask in masks.items()}
            with target.masked(soft) if soft else nullcontext():
                flow = (target(ones).sum() for _ in range(1))
                batches_of(
                    stream_gradients(
                        flow, tensors, lambda name, gradient: sums.add(name, gradient * tensors[name].detach())
                    )
                )
        return sums.take()


class _Fate:
    """In which round each unit was removed: a byte a unit (two for more than 255 rounds), 0 where it stays."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.removed: dict[str, Tensor] = {}

    def masks(self) -> Keep:
        """(size,) bool of each group: which stay; nothing before the first round."""
        return {name: removed == 0 for name, removed in self.removed.items()}

    def remove(self, left: Keep, number: int) -> None:
        """Note what this round removed of what was left before it."""
        for name, mask in left.items():
            if name not in self.removed:
                dtype = torch.uint8 if self.rounds < 256 else torch.int32
                self.removed[name] = torch.zeros_like(mask, dtype=dtype)
            for removed, stays in zip(self.removed[name].split(_PIECE), mask.split(_PIECE), strict=True):
                removed.masked_fill_((removed == 0).logical_and_(~stays), number)

    def written_into(self, scores: Scores) -> Scores:
        """The scores, with those of removed units below 0, the earlier the lower."""
        for name, gone in self.removed.items():
            for score, removed in zip(scores[name].split(_PIECE), gone.split(_PIECE), strict=True):
                torch.where(removed == 0, score, removed.to(score).sub_(self.rounds + 1), out=score)
        return scores


@dataclass(frozen=True)
class GraSP:
    """w^T H g: by how much removing a unit would lower half the squared norm of the gradient, to first order.

    Wang et al. 2020, Picking Winning Tickets Before Training by Preserving Gradient Flow (arXiv 2002.07376, eq. 8):
    removal changes the gradient flow by S = -w H g; what raises it most goes first, so the score is -S. H and g are
    those of the mean loss over the calibration. The released code divides logits by a temperature of 200, which belongs
    into the objective.

    One copy of the parameters is held, g, and H g of one of them at a time; scores of single weights are another copy.

    Args:
        method: how H g is taken.
        params: names of the parameters that count; None counts all that the unit owns.
    """

    method: DerivativeMethod = "double_backward"
    params: tuple[str, ...] | None = None

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group, of both signs.

        Raises:
            ValueError: there is no objective, or it fails (see `secateur.derivatives.stream_hessian_vector_products`).
        """
        objective = required(calibration, self)
        sums = UnitSums(target.groups())
        with differentiable(target, self.params) as tensors:
            gradient = mean_over_losses(objective.losses(target), tensors)
            vectors = {name: gradient.pop(name).to(tensor) for name, tensor in tensors.items()}
            count = stream_hessian_vector_products(
                lambda: objective.losses(target),
                tensors,
                vectors,
                lambda name, share, value: sums.add(name, share * value),
                self.method,
                vectors.pop,
            )
        return {name: value.div_(count) for name, value in sums.take().items()}


@contextmanager
def absolute(module: nn.Module, keep_values: bool = False) -> Iterator[None]:
    """While the context is open, floating-point parameters and buffers are absolute; afterwards what they were.

    Args:
        module: its tensors change in place.
        keep_values: give values back that change meanwhile, too: a copy is held, instead of a byte an element.
    """
    state = [t.detach() for t in chain(module.parameters(), module.buffers()) if t.is_floating_point()]
    before = [tensor.clone() if keep_values else tensor.signbit() for tensor in state]
    try:
        for tensor in state:
            tensor.abs_()
        yield
    finally:
        for tensor, held in zip(state, before, strict=True):
            if keep_values:
                tensor.copy_(held)
            else:
                torch.where(held, -tensor, tensor, out=tensor)


def _module_of(target: Network, criterion: object) -> nn.Module:
    if getattr(target, "module", None) is None:
        raise ValueError(f"{criterion} needs a target that wraps a module, got {type(target).__name__}")
    return target.module  # type: ignore[return-value]
