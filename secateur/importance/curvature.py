"""Curvature importance: the second-order change of the loss that removing a unit would make.

At a minimum the gradient is 0 (exactly so for a scene that is compared with its own renders), and to second order the
loss changes by 0.5 w^T H w alone. The criteria here differ in what they take for H and in which of its entries count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from secateur.derivatives import Mean, Take, batches_of, stream_gradients
from secateur.hessian_products import DerivativeMethod, TakeShare, stream_hessian_vector_products
from secateur.importance.objective import Objective, differentiable, mask_of_ones, only_masks, required
from secateur.maths import rademacher, root_mean_square
from secateur.units import Prunable, Scores, UnitGroup, UnitSums


class SecondOrder(ABC):
    """A criterion that shares w^T H w among the elements: a unit's score is half of what its elements get."""

    @abstractmethod
    def stream(self, target: Prunable, objective: Objective, take: Take) -> float:
        """Hand each element's part of w^T H w to `take`, parameter by parameter, in shares, which are given away.

        Returns:
            by how much their sum is to be divided.
        """

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group: the change of the mean loss, estimated."""
        sums = UnitSums(target.groups())
        count = self.stream(target, required(calibration, self), sums.add)
        return {name: value.mul_(0.5 / count) for name, value in sums.take().items()}

    def quadratic(self, target: Prunable, objective: Objective) -> dict[str, Tensor]:
        """Parameter name -> the part of w^T H w of each element, shaped like the parameter."""
        mean = Mean()
        return mean.over(self.stream(target, objective, mean.add))


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

    def stream(self, target: Prunable, objective: Objective, take: Take) -> float:
        with differentiable(target, self.params) as tensors:
            return batches_of(
                stream_gradients(
                    objective.losses(target),
                    tensors,
                    lambda name, gradient: take(name, (gradient * tensors[name].detach()).square_()),
                )
            )


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

    def stream_diagonal(self, target: Prunable, objective: Objective, take: TakeShare) -> float:
        """Hand estimates of H_ii of the mean loss to `take`, parameter by parameter, in shares of the returned number.

        With them come the parameters' values; the shares are given away. Besides what `take` makes of them, a byte an
        element is held: the probe's signs.
        """
        with differentiable(target, self.params) as tensors:
            scales = {name: root_mean_square(tensor) or 1.0 for name, tensor in tensors.items()}
            return _stream_probes(self, lambda: objective.losses(target), tensors, scales, take)

    def diagonal(self, target: Prunable, objective: Objective) -> dict[str, Tensor]:
        """Parameter name -> estimated H_ii of the mean loss, shaped like the parameter."""
        mean = Mean()
        return mean.over(self.stream_diagonal(target, objective, lambda name, share, _: mean.add(name, share)))

    def stream(self, target: Prunable, objective: Objective, take: Take) -> float:
        if not self.absolute:
            return self.stream_diagonal(
                target, objective, lambda name, share, value: take(name, share.mul_(value).mul_(value))
            )
        tensors, diagonal = target.tensors(), self.diagonal(target, objective)
        for name in list(diagonal):
            value = tensors[name].detach()
            take(name, diagonal.pop(name).abs_().mul_(value).mul_(value))
        return 1.0


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

    def stream(self, target: Prunable, objective: Objective, take: Take) -> float:
        with differentiable(target, self.params) as tensors:
            return stream_hessian_vector_products(
                lambda: objective.losses(target),
                tensors,
                tensors,
                lambda name, share, value: take(name, share * value),
                self.method,
            )


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
        groups, sums = target.groups(), UnitSums(target.groups())
        count = self.hessian.stream_diagonal(
            target, required(calibration, self), lambda name, share, _: sums.add(name, share)
        )
        traces = sums.take()
        return {group.name: self._spread(traces.pop(group.name), target, group).div_(count) for group in groups}

    def _spread(self, trace: Tensor, target: Prunable, group: UnitGroup) -> Tensor:
        """(size,) trace / (2 p) * squared norm, in the trace's place."""
        tensors, energies, elements = target.tensors(), UnitSums([group]), 0
        counted = set(tensors if self.hessian.params is None else self.hessian.params)
        for member in group.members:
            if member.param in counted and tensors[member.param].is_floating_point():
                tensor = tensors[member.param].detach()
                rows = 1 if member.rows is None else member.rows.shape[1]
                elements += rows * tensor.numel() // tensor.shape[member.dim]
        for name in dict.fromkeys(member.param for member in group.members):
            if name in counted and tensors[name].is_floating_point():
                energies.add(name, tensors[name].detach().square())
        return trace.mul_(energies.pop(group.name)).div_(2 * elements)


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
        masks = mask_of_ones(target)

        def losses() -> Iterator[Tensor]:
            # Entered anew for each pass: a target may read its masks as it opens the context.
            with target.masked(masks):
                yield from objective.losses(target)

        mean = Mean()
        with only_masks(target):
            count = _stream_probes(
                self, losses, masks, dict.fromkeys(masks, 1.0), lambda name, share, _: mean.add(name, share)
            )
        return mean.over(count, masks)

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group: the change of the mean loss, estimated."""
        diagonal = self.diagonal(target, required(calibration, self))
        return {name: 0.5 * value for name, value in diagonal.items()}


def _stream_probes(
    how: HessianDiagonal | MaskHessian,
    losses: Callable[[], Iterable[Tensor]],
    tensors: Mapping[str, Tensor],
    scales: Mapping[str, float],
    take: TakeShare,
) -> float:
    """Hand v (H v) / scale^2 of probes v of signs times scale to `take`; returns by how much to divide their sum."""
    generator = torch.Generator().manual_seed(how.seed)
    divisor = 0.0
    for _ in range(how.samples):
        signs = {name: rademacher(tensor, generator, torch.int8) for name, tensor in tensors.items()}
        probes = _Probes(signs, tensors, scales)
        divisor += stream_hessian_vector_products(losses, tensors, probes, partial(probes.divide, take), how.method)
    return divisor


@dataclass(frozen=True)
class _Probes(Mapping[str, Tensor]):
    """Signs times a scale, made when they are asked for: they are wanted one at a time."""

    signs: Mapping[str, Tensor]
    like: Mapping[str, Tensor]
    scales: Mapping[str, float]

    def __getitem__(self, name: str) -> Tensor:
        return self.signs[name].to(self.like[name].dtype).mul_(self.scales[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.signs)

    def __len__(self) -> int:
        return len(self.signs)

    def divide(self, take: TakeShare, name: str, product: Tensor, value: Tensor) -> None:
        """Hand v (H v) / scale^2 to `take`."""
        take(name, self[name].mul_(product).div_(self.scales[name] ** 2), value)


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
