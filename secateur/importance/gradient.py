"""Gradient importance: the change of the loss that removing a unit would make, to first order.

Removing unit S, w_S -> 0, changes the loss by -sum of g_i w_i over S + 0.5 w_S^T H w_S + ...; criteria differ in how
that becomes one number over the batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from secateur.derivatives import Mean, batches_of, mean_over_losses, stream_gradients
from secateur.importance.curvature import MaskHessian, SecondOrder
from secateur.importance.objective import Objective, differentiable, mask_of_ones, only_masks, required
from secateur.units import Prunable, Scores, UnitSums, WholeUnitSums

Reduce = Literal["abs", "square", "signed"]
"""What is averaged over the batches: |change|, change^2, or the change itself."""


@dataclass(frozen=True)
class Taylor:
    """Mean over batches of |sum over the unit's elements of g w|, or of its square.

    Molchanov et al. 2019 (arXiv 1906.10771): elements are summed first, as they are in the gradient of a gate on the
    unit; then squared, or taken absolute; then averaged over batches. Averaging squares of single samples is
    twice the Fisher pruning of Theis et al. (arXiv 1801.05787).

    `reduce="elements"` is the sum of |g w| over the unit's elements; over single weights and with all data in one batch
    that is SNIP (Lee et al. 2019, arXiv 1810.02340), whose normalisation changes no order.

    Args:
        reduce: "abs", "square", "elements" (see above), or "signed": the change of the mean loss itself, below 0 where
            removal is expected to help.
        second: adds 0.5 w^T H w to the change; exact for a quadratic loss with a diagonal Hessian under
            `HessianDiagonal`.
        params: names of the parameters that count; None counts all that the unit owns.
    """

    reduce: Reduce | Literal["elements"] = "abs"
    second: SecondOrder | None = None
    params: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_reduce(self.reduce, (*get_args(Reduce), "elements"))

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group.

        Raises:
            ValueError: there is no objective, or it fails (see `secateur.derivatives.stream_gradients`).
        """
        objective = required(calibration, self)
        quadratic, halves = self._second_order(target, objective)
        mean = Mean()

        def change(name: str, gradient: Tensor) -> None:
            elements = (gradient * tensors[name].detach()).neg_()
            if name in quadratic:
                elements.add_(quadratic[name], alpha=0.5)
            sums.add(name, elements.abs_() if self.reduce == "elements" else elements)

        def reduce(group: str, change: Tensor) -> None:
            if group in halves:
                change.add_(halves[group])
            mean.add(group, _reduced(change, self.reduce))

        with differentiable(target, self.params) as tensors:
            sums = WholeUnitSums(target.groups(), tensors, reduce)
            count = batches_of(stream_gradients(objective.losses(target), tensors, change))
        return mean.over(count, [group.name for group in target.groups()])

    def _second_order(self, target: Prunable, objective: Objective) -> tuple[dict[str, Tensor], Scores]:
        """w^T H w of each element, by parameter, where absolute values are taken of elements; else half of each unit's.

        Sums of units are far fewer numbers, unless units are single elements.
        """
        if self.second is None:
            return {}, {}
        if self.reduce == "elements":
            return self.second.quadratic(target, objective), {}
        counted = set(target.tensors() if self.params is None else self.params)
        sums = UnitSums(target.groups())

        def add(name: str, share: Tensor) -> None:
            if name in counted:
                sums.add(name, share)

        count = self.second.stream(target, objective, add)
        return {}, {group: value.mul_(0.5 / count) for group, value in sums.take(partly=True).items()}


@dataclass(frozen=True)
class MaskTaylor:
    """Mean over batches of |d loss / d mask| at a mask of ones, or of its square.

    The gate of Molchanov et al. 2019 (arXiv 1906.10771) and of Michel et al. 2019 (attention heads, arXiv
    1905.10650); with squares, Group Fisher (Liu et al. 2021, arXiv 2108.00708). It equals `Taylor` where a mask
    multiplies the weights, and has a meaning where it does not: a Gaussian of log-scale 0 is no smaller than others.

    Args:
        reduce: "abs", "square", or "signed": the change of the mean loss itself.
        second: adds half the second derivative to the change.
    """

    reduce: Reduce = "abs"
    second: MaskHessian | None = None

    def __post_init__(self) -> None:
        _check_reduce(self.reduce, get_args(Reduce))

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group.

        Raises:
            ValueError: there is no objective, or it fails (see `secateur.derivatives.stream_gradients`).
        """
        objective = required(calibration, self)
        curvature = {} if self.second is None else self.second.diagonal(target, objective)
        masks = mask_of_ones(target)

        def change(name: str, gradient: Tensor) -> Tensor:
            return _reduced(0.5 * curvature.get(name, 0.0) - gradient, self.reduce)

        with torch.enable_grad(), only_masks(target), target.masked(masks):
            return mean_over_losses(objective.losses(target), masks, change)


def _check_reduce(reduce: str, known: tuple[str, ...]) -> None:
    if reduce not in known:
        raise ValueError(f"reduce must be one of {known}, got {reduce!r}")


def _reduced(change: Tensor, reduce: str) -> Tensor:
    if reduce == "abs":
        return change.abs_()
    return change.square_() if reduce == "square" else change
