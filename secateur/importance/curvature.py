"""Curvature importance: the second-order change of the loss that removing a unit would make.

At a minimum the gradient is 0 (exactly so for a scene that is compared with its own renders), and to second order the
loss changes by 0.5 w^T H w alone. The criteria here differ in what they take for H and in which of its entries count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.importance.objective import Objective, differentiable, mask_of_ones, required
from secateur.maths import (
    DerivativeMethod,
    hessian_vector_product,
    mean_over_losses,
    mean_tensors,
    rademacher,
    root_mean_square,
)
from secateur.units import Prunable, Scores, fold


class SecondOrder(ABC):
    """A criterion that shares w^T H w among the elements: a unit's score is half of what its elements get."""

    @abstractmethod
    def quadratic(self, target: Prunable, objective: Objective) -> dict[str, Tensor]:
        """Parameter name -> the part of w^T H w of each element, shaped like the parameter."""

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group: the change of the mean loss, estimated."""
        elements = self.quadratic(target, required(calibration, self))
        return {group.name: 0.5 * fold(elements, group) for group in target.groups()}


@dataclass(frozen=True)
class Fisher(SecondOrder):
    """0.5 * mean of g_i^2 * w_i^2: the diagonal of the empirical Fisher information stands for the Hessian's.

    The mean is over batches: a batch is to be one sample for the Fisher information proper. Fisher pruning of whole
    units (Theis et al. 2018, arXiv 1801.05787, and Group Fisher, Liu et al. 2021, arXiv 2108.00708) squares the gate's
    gradient instead, which counts how a unit's elements act together: that is `Taylor(reduce="square")`, or
    `MaskTaylor(reduce="square")`, up to the factor 0.5.

    Args:
        params: names of the parameters that count; None counts all that the unit owns.
    """

    params: tuple[str, ...] | None = None

    def quadratic(self, target: Prunable, objective: Objective) -> dict[str, Tensor]:
        with differentiable(target, self.params) as tensors:
            squares = mean_over_losses(
                objective.losses(target),
                tensors,
                lambda gradients: {name: gradients.pop(name).square() for name in list(gradients)},
            )
            return {name: squares.pop(name) * tensor.detach().square() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class HessianDiagonal(SecondOrder):
    """0.5 * H_ii * w_i^2 (Optimal Brain Damage, LeCun et al. 1989), with H_ii estimated by random probes.

    H_ii is the mean of v_i (H v)_i / s^2 over probes v of random signs times s (Hutchinson; Bekas et al. 2007), where
    s is the root mean square of the parameter, so that the noise and the step of central differences do not depend on
    the parameters' units. One Hessian-vector product a probe serves all units. The estimate is exact where H is
    diagonal; else its variance falls with 1 / samples.

    Args:
        samples: number of probes.
        seed: the same seed gives the same probes.
        method: "central_differences" for losses that can be differentiated once only (a rasteriser).
        absolute: count |H_ii|, for losses away from a minimum.
        params: names of the parameters that count; None counts all that the unit owns.
    """

    samples: int = 16
    seed: int = 0
    method: DerivativeMethod = "double_backward"
    absolute: bool = False
    params: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    def diagonal(self, target: Prunable, objective: Objective) -> dict[str, Tensor]:
        """Parameter name -> estimated H_ii of the mean loss, shaped like the parameter."""
        generator = torch.Generator().manual_seed(self.seed)
        with differentiable(target, self.params) as tensors:
            scales = {name: root_mean_square(tensor) or 1.0 for name, tensor in tensors.items()}

            def sample() -> dict[str, Tensor]:
                probes = {name: scales[name] * rademacher(tensor, generator) for name, tensor in tensors.items()}
                products = hessian_vector_product(lambda: objective.losses(target), tensors, probes, self.method)
                return {name: probes[name] * product / scales[name] ** 2 for name, product in products.items()}

            return mean_tensors(sample() for _ in range(self.samples))

    def quadratic(self, target: Prunable, objective: Objective) -> dict[str, Tensor]:
        tensors, diagonal = target.tensors(), self.diagonal(target, objective)
        for name, value in diagonal.items():
            (value.abs_() if self.absolute else value).mul_(tensors[name].detach().square())
        return diagonal


@dataclass(frozen=True)
class HessianProduct(SecondOrder):
    """0.5 * w_i (H w)_i, which shares all of w^T H w, mixed terms too, with one Hessian-vector product.

    Optimal Brain Apoptosis (Sun et al. 2025, arXiv 2502.17941) and the second-order score of Molchanov et al. 2019
    (arXiv 1906.10771) rest on this term.

    Args:
        method: "central_differences" for losses that can be differentiated once only (a rasteriser).
        params: names of the parameters that count; None counts all that the unit owns.
    """

    method: DerivativeMethod = "double_backward"
    params: tuple[str, ...] | None = None

    def quadratic(self, target: Prunable, objective: Objective) -> dict[str, Tensor]:
        with differentiable(target, self.params) as tensors:
            weights = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            products = hessian_vector_product(lambda: objective.losses(target), tensors, weights, self.method)
        return {name: weights[name] * product for name, product in products.items()}


@dataclass(frozen=True)
class HessianTrace:
    """Trace of a unit's Hessian block / (2 p) * squared norm of its p elements.

    Hessian-Aware Pruning (Yu et al. 2021, arXiv 2101.08940, section 3): the mean curvature of a unit stands for that
    along its weights.

    Args:
        hessian: how the trace is estimated, and which parameters count.
    """

    hessian: HessianDiagonal = field(default_factory=HessianDiagonal)

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group."""
        diagonal = self.hessian.diagonal(target, required(calibration, self))
        tensors = target.tensors()
        squares = {name: tensors[name].detach().square() for name in diagonal}
        ones = {name: torch.ones_like(value) for name, value in diagonal.items()}
        return {
            group.name: fold(diagonal, group) / (2 * fold(ones, group)) * fold(squares, group)
            for group in target.groups()
        }


@dataclass(frozen=True)
class MaskHessian:
    """0.5 * d^2 loss / d mask_i^2 at a mask of ones, estimated by random probes.

    The unit's own second-order term whatever its parameters mean: a Gaussian's mean and rotation are no less removed
    than its opacity. For units whose mask multiplies their weights it is 0.5 w^T H w over the whole block of the unit.

    Args:
        samples: number of probes; one Hessian-vector product each.
        seed: the same seed gives the same probes.
        method: "central_differences" for losses that can be differentiated once only (a rasteriser).
    """

    samples: int = 16
    seed: int = 0
    method: DerivativeMethod = "double_backward"

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    def diagonal(self, target: Prunable, objective: Objective) -> Scores:
        """Group name -> (size,) estimated second derivatives of the mean loss."""
        generator = torch.Generator().manual_seed(self.seed)
        masks = mask_of_ones(target)

        def losses() -> Iterator[Tensor]:
            # Entered anew for each pass: a target may read its masks as it opens the context.
            with target.masked(masks):
                yield from objective.losses(target)

        def sample() -> dict[str, Tensor]:
            probes = {name: rademacher(mask, generator) for name, mask in masks.items()}
            products = hessian_vector_product(losses, masks, probes, self.method)
            return {name: probes[name] * product for name, product in products.items()}

        return mean_tensors(sample() for _ in range(self.samples))

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group: the change of the mean loss, estimated."""
        diagonal = self.diagonal(target, required(calibration, self))
        return {name: 0.5 * value for name, value in diagonal.items()}


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
