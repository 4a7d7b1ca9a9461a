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
from secateur.derivatives import (
    DerivativeMethod,
    batches_of,
    mean_over_losses,
    stream_gradients,
    stream_hessian_vector_products,
)
from secateur.importance.objective import Objective, differentiable, required
from secateur.selection import keep_top
from secateur.units import Keep, Prunable, Scores, UnitSums


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
        keep: Keep | None = None
        gone: Scores = {}
        with absolute(module), evaluating(module), torch.enable_grad():
            for number in range(1, self.rounds + 1):
                scores = self._flow(target, keep)
                if keep is not None:
                    scores = {name: torch.where(keep[name], value, gone[name]) for name, value in scores.items()}
                budget = Budget(share=self.share ** (number / self.rounds))
                left = keep_top(scores, groups, budget)
                for name, mask in left.items():
                    removed = ~mask if keep is None else keep[name] & ~mask
                    fresh = torch.full_like(scores[name], float(number - self.rounds - 1))
                    gone[name] = torch.where(removed, fresh, gone[name]) if name in gone else fresh
                keep = left
        assert keep is not None
        return {name: torch.where(keep[name], value, gone[name]) for name, value in scores.items()}

    def _flow(self, target: Network, keep: Keep | None) -> Scores:
        sums = UnitSums(target.groups())
        with differentiable(target) as tensors:
            like = next(iter(tensors.values()))
            ones = torch.ones(self.input_shape, dtype=like.dtype, device=like.device)
            masks = {} if keep is None else {name: mask.to(like) for name, mask in keep.items()}
            with target.masked(masks) if masks else nullcontext():
                flow = (target(ones).sum() for _ in range(1))
                batches_of(
                    stream_gradients(
                        flow, tensors, lambda name, gradient: sums.add(name, gradient * tensors[name].detach())
                    )
                )
        return sums.take()


@dataclass(frozen=True)
class GraSP:
    """w^T H g: by how much removing a unit would lower half the squared norm of the gradient, to first order.

    Wang et al. 2020, Picking Winning Tickets Before Training by Preserving Gradient Flow (arXiv 2002.07376, eq. 8):
    removal changes the gradient flow by S = -w H g; what raises it most goes first, so the score is -S. H and g are
    those of the mean loss over the calibration. The released code divides logits by a temperature of 200, which belongs
    into the objective.

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
                lambda name, curved: sums.add(name, curved * tensors[name].detach()),
                self.method,
            )
        return {name: value / count for name, value in sums.take().items()}


@contextmanager
def absolute(module: nn.Module) -> Iterator[None]:
    """While the context is open, floating-point parameters and buffers are absolute; afterwards what they were."""
    state = [t.detach() for t in chain(module.parameters(), module.buffers()) if t.is_floating_point()]
    negative = [tensor.signbit() for tensor in state]
    try:
        for tensor in state:
            tensor.abs_()
        yield
    finally:
        for tensor, sign in zip(state, negative, strict=True):
            torch.where(sign, -tensor, tensor, out=tensor)


def _module_of(target: Network, criterion: object) -> nn.Module:
    if getattr(target, "module", None) is None:
        raise ValueError(f"{criterion} needs a target that wraps a module, got {type(target).__name__}")
    return target.module  # type: ignore[return-value]
