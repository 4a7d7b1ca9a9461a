"""Perturbation importance: switch units off and look. Forward passes only, so any renderer or sampler will do.

The calibration is an `Objective`, whose losses need not be differentiable here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.importance.objective import Objective, mask_of_ones, required
from secateur.maths import sample_without_replacement
from secateur.units import Criterion, Prunable, Scores


@dataclass(frozen=True)
class Ablation:
    """Loss without the unit minus loss with all: exactly what removing each unit alone would change.

    As many passes over the data as there are units, and one more. What first-order and second-order criteria
    approximate, and what greedy removal looks at (`secateur.greedy`).
    """

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) float64 scores of each group; below 0 where the loss falls.

        Raises:
            ValueError: there is no objective, it gives no losses, or one of them is not finite.
        """
        objective = required(calibration, self)
        dense = mean_loss(target, objective)
        removed = measure_removals(target, lambda each: mean_loss(each, objective))
        return {name: losses - dense for name, losses in removed.items()}


@dataclass(frozen=True)
class Bonsai:
    """How much each unit adds to the utility of random sub-models, by ridge regression: beta of U = c + beta . alpha.

    Dery et al. 2024, Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes (arXiv 2402.05406):
    alpha in {0, 1}^N says which units a sub-model has, U = -loss is measured, and beta minimises the sum of (U - c -
    beta . alpha)^2 + ridge ||beta||^2. Sub-models are drawn without replacement from a prior, and with each comes its
    complement, as in the released code. The intercept c, which is not penalised, and the dense model among the samples
    are choices of ours: with them beta is determined, and an additive utility is recovered exactly.

    Args:
        pairs: how many sub-models are drawn; each gives two samples.
        share: of all units, over all groups, that a drawn sub-model has.
        ridge: weight of the square of beta for each sample.
        prior: scores, not negative, to which the chance of being drawn is proportional (the paper takes activations'
            size); None: all alike.
        antithetic: the second sample of a pair is the first one's complement; if not, it is drawn as the first one.
        seed: of the draws.

    Raises:
        ValueError: an option is out of range.
    """

    pairs: int = 100
    share: float = 0.5
    ridge: float = 1e-6
    prior: Criterion | None = None
    antithetic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1 or not 0 < self.share < 1 or self.ridge < 0:
            raise ValueError(
                "pairs >= 1, share between 0 and 1 and ridge >= 0 are needed, got "
                f"{self.pairs}, {self.share} and {self.ridge}"
            )

    def score(self, target: Prunable, calibration: Objective | None = None) -> Scores:
        """(size,) float64 scores of each group.

        Raises:
            ValueError: there is no objective, it gives no losses, or one of them is not finite; or a prior is
                negative, or positive for too few units.
        """
        objective = required(calibration, self)
        ones = {name: mask.detach() for name, mask in mask_of_ones(target).items()}
        sizes = [len(mask) for mask in ones.values()]
        samples, utilities = torch.stack(list(self._drawn(target, calibration))), []
        for alpha in samples:
            parts = zip(ones.items(), alpha.split(sizes), strict=True)
            with target.masked({name: part.to(one) for (name, one), part in parts}):
                utilities.append(-mean_loss(target, objective))
        beta = ridge_regression(samples, torch.tensor(utilities, dtype=torch.float64), self.ridge)
        return dict(zip(ones, beta.split(sizes), strict=True))

    def _drawn(self, target: Prunable, calibration: Objective | None) -> Iterator[Float[Tensor, " units"]]:
        """The dense model, then the sub-models, over the units of all groups one after another."""
        groups = target.groups()
        total = sum(group.size for group in groups)
        weights = torch.ones(total, dtype=torch.float64)
        if self.prior is not None:
            scores = self.prior.score(target, calibration)
            weights = torch.cat([scores[group.name].detach().cpu().double() for group in groups])
        generator = torch.Generator().manual_seed(self.seed)
        count = min(max(round(self.share * total), 1), total)
        yield torch.ones(total, dtype=torch.float64)
        for _ in range(self.pairs):
            alpha = sample_without_replacement(weights, count, generator)
            yield alpha.double()
            other = ~alpha if self.antithetic else sample_without_replacement(weights, count, generator)
            yield other.double()


def ridge_regression(
    samples: Float[Tensor, "samples units"], values: Float[Tensor, " samples"], ridge: float
) -> Float[Tensor, " units"]:
    """(units,) beta that minimises the mean of (values - c - samples beta)^2 + ridge ||beta||^2, over beta and c."""
    centred, goal = samples - samples.mean(0), values - values.mean()
    count, units = samples.shape
    penalty = (ridge * count) ** 0.5
    if units <= count or not ridge:
        design = torch.cat([centred, penalty * torch.eye(units, dtype=samples.dtype)])
        padded = torch.cat([goal, goal.new_zeros(units)])
        # The driver that copes with columns which depend on one another.
        return torch.linalg.lstsq(design, padded[:, None], driver="gelsd").solution[:, 0]
    inner = centred @ centred.T + ridge * count * torch.eye(count, dtype=samples.dtype)
    return centred.T @ torch.linalg.solve(inner, goal)


def mean_loss(target: Any, objective: Objective) -> float:
    """The mean loss over the batches, without gradients, under the masks that are in force.

    Raises:
        ValueError: there are no losses, or one is not finite.
    """
    with torch.no_grad():
        losses = [float(loss) for loss in objective.losses(target)]
    wrong = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if wrong is not None:
        raise ValueError(f"the loss of batch {wrong} must be finite, got {losses[wrong]}")
    if not losses:
        raise ValueError("the objective gave no losses")
    return sum(losses) / len(losses)


@torch.no_grad()
def measure_removals(target: Prunable, measure: Callable[[Any], float]) -> Scores:
    """Group name -> (size,) float64 of what `measure` says of the target when each unit alone is gone, by masks.

    Args:
        target: what loses a unit at a time; it is called inside the mask, without gradients.
        measure: target -> number; deterministic.
    """
    ones = {name: mask.detach() for name, mask in mask_of_ones(target).items()}
    measured = {}
    for name, whole in ones.items():
        values = []
        for unit in range(len(whole)):
            mask = whole.clone()
            mask[unit] = 0
            with target.masked(ones | {name: mask}):
                values.append(measure(target))
        measured[name] = torch.tensor(values, dtype=torch.float64)
    return measured


def output_shift(dense: Float[Tensor, "samples ..."], changed: Float[Tensor, "samples ..."]) -> float:
    """||mean - mean'||_2 + ||std - std'||_2, the mean and the standard deviation of each element over the samples.

    The score of LD-Pruner (Castells et al. 2024, arXiv 2404.11936) for the latents that a diffusion model ends in:
    `measure_removals(target, lambda each: output_shift(latents, sample(each)))`. It compares sets: a removal that only
    exchanges samples scores 0. Whether the paper squares its norms is not confirmed.

    Args:
        dense: what the whole network makes of some samples, two of them at least.
        changed: what another one makes of them.

    Raises:
        ValueError: the shapes differ, or there are fewer than two samples.
    """
    return sum(output_shifts(dense, changed))


def output_shifts(dense: Float[Tensor, "samples ..."], changed: Float[Tensor, "samples ..."]) -> tuple[float, float]:
    """The two norms of `output_shift`, of the means and of the standard deviations, which differ in size.

    Arguments and errors as for `output_shift`.
    """
    if dense.shape != changed.shape or dense.ndim < 1 or len(dense) < 2:
        raise ValueError(
            f"a shift needs two samples or more of one shape, got {tuple(dense.shape)} and {tuple(changed.shape)}"
        )
    mean, std = (kind(dense.double(), dim=0) - kind(changed.double(), dim=0) for kind in (torch.mean, torch.std))
    return float(mean.norm()), float(std.norm())
