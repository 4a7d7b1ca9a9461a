"""Diff-Pruning: Taylor importance over the time steps that still tell something.

Fang et al. 2023, Structural Pruning for Diffusion Models (arXiv 2305.10924). The loss of predicting the noise falls as
noise grows; where it is a small share of its maximum, gradients are mostly noise, and such steps are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.noising import Noising
from secateur.derivatives import Mean, batches_of, stream_gradients
from secateur.importance.objective import Objective, differentiable, required
from secateur.units import Prunable, Scores, fold


class StepLoss(Protocol):
    """The loss of a denoiser at one time step of its training."""

    def __call__(self, target: Any, timestep: int, /) -> Tensor:
        """One number, differentiable; the same call draws the same data and noise."""
        ...


@dataclass(frozen=True)
class PredictionLoss:
    """Mean squared error of the denoiser's prediction on one batch, at one time step.

    Args:
        predict: (target, noisy latents, timesteps (batch,)) -> the denoiser's output, shaped like the latents.
        latents: (batch, ...) clean latents, one batch for all steps.
        noising: how noise is added, and what is predicted.
        seed: of the noise, which is the same at every step.
    """

    predict: Callable[[Any, Tensor, Tensor], Tensor]
    latents: Float[Tensor, "batch ..."]
    noising: Noising
    seed: int = 0

    def __call__(self, target: Any, timestep: int) -> Tensor:
        """The loss at `timestep`, an index into the time steps of `noising`."""
        clean = self.latents
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype).to(clean.device)
        indices = torch.full((len(clean),), timestep)
        times = self.noising.timesteps[indices].to(clean.device)
        predicted = self.predict(target, self.noising.add(clean, noise, indices), times)
        return (predicted.float() - self.noising.target(clean, noise, indices).float()).square().mean()


@dataclass(frozen=True)
class InformativeSteps:
    """The losses of time steps, smallest noise first, until one is below a share of the largest: an `Objective`.

    Fang et al. 2023 (arXiv 2305.10924): steps whose loss relative to the maximum falls below the threshold are left
    out. As in the authors' code, the walk stops at the first such step, whose loss does not count.

    Any gradient criterion of the core can look through it: `secateur.importance.Taylor` and `MaskTaylor` average over
    the steps what removal changes at each, `DiffPruning` adds the gradients of the steps up first.

    Args:
        loss: of one step.
        steps: the time steps in the order of the walk; all of them in the paper, fewer are cheaper.
        threshold: share of the largest loss below which a step tells nothing; 0 takes all.
        weights: (steps,) factor of each step's loss; None weighs them alike. They do not move the threshold.

    Raises:
        ValueError: no steps, weights of another number, or a threshold outside 0 to 1.
    """

    loss: StepLoss
    steps: Sequence[int] | Int64[Tensor, " steps"]
    threshold: float = 0.05
    weights: Float[Tensor, " steps"] | None = None

    def __post_init__(self) -> None:
        if not len(self.steps):
            raise ValueError("there must be a time step to look at")
        if self.weights is not None and len(self.weights) != len(self.steps):
            raise ValueError(f"{len(self.steps)} steps need as many weights, got {len(self.weights)}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be at least 0 and below 1, got {self.threshold}")

    def losses(self, target: Any) -> Iterator[Tensor]:
        """The loss of each step that counts, computed when it is asked for."""
        largest = 0.0
        for number, timestep in enumerate(self.steps):
            loss = self.loss(target, int(timestep))
            largest = max(largest, float(loss.detach()))
            if float(loss.detach()) < self.threshold * largest:
                return
            yield loss if self.weights is None else loss * float(self.weights[number])


@dataclass(frozen=True)
class DiffPruning:
    """Sum over the unit's elements of |w g|, g the gradients of all informative time steps added up.

    Fang et al. 2023 (arXiv 2305.10924), where one gradient accumulates over the steps, so that what pulls to and fro
    cancels; `secateur.importance.Taylor` over the same `InformativeSteps` takes absolute values step by step.

    Args:
        params: names of the parameters that count; None counts all that the unit owns.
    """

    params: tuple[str, ...] | None = None

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group.

        Raises:
            ValueError: there is no objective, or it fails (see `secateur.derivatives.stream_gradients`).
        """
        objective = required(calibration, self)
        with differentiable(target, self.params) as tensors:
            total = Mean()
            batches_of(stream_gradients(objective.losses(target), tensors, total.add))
        elements = {name: (tensors[name].detach() * gradient).abs() for name, gradient in total.over(1).items()}
        return {group.name: fold(elements, group) for group in target.groups()}
