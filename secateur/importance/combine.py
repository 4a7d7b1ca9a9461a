"""Criteria made of criteria. They work in every domain, and combine with one another."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from secateur.maths import average_ranks, gumbel_scores
from secateur.units import Criterion, Scores


@dataclass(frozen=True)
class Product:
    """The product of several criteria, each raised to a power.

    A unit that one factor deems worthless (0) is worthless. Powers make factors of different units comparable, as the
    exponent beta of LightGaussian does for volumes.

    Args:
        criteria: at least one; their scores must not be negative.
        powers: one positive exponent each; None means 1.
    """

    criteria: tuple[Criterion, ...]
    powers: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_weights(self.criteria, self.powers, "powers")
        if self.powers is not None and not all(power > 0 for power in self.powers):
            raise ValueError(f"powers must be positive, got {self.powers}")

    def score(self, target: Any, calibration: Any = None) -> Scores:
        """(size,) float64 scores of each group.

        Raises:
            ValueError: a score is negative.
        """
        scored = [criterion.score(target, calibration) for criterion in self.criteria]
        for criterion, scores in zip(self.criteria, scored, strict=True):
            negative = sum(int((value < 0).sum()) for value in scores.values())
            if negative:
                raise ValueError(f"a product needs scores that are not negative; {criterion} gave {negative} below 0")
        powers = self.powers or (1.0,) * len(self.criteria)
        return {
            name: prod(
                (scores[name].double() ** power for scores, power in zip(scored, powers, strict=True)), start=one
            )
            for name, one in _ones(scored[0]).items()
        }


@dataclass(frozen=True)
class RankMixture:
    """The weighted mean of the ranks that several criteria give.

    Ranks do not depend on units or outliers, so that any criteria can be mixed; equal scores share their mean rank.

    Args:
        criteria: at least one.
        weights: one each, not negative, of any positive sum; None means equal weights.
    """

    criteria: tuple[Criterion, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_weights(self.criteria, self.weights, "weights")
        if self.weights is not None and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise ValueError(f"weights must not be negative and not all 0, got {self.weights}")

    def score(self, target: Any, calibration: Any = None) -> Scores:
        """(size,) float64 scores in (0, 1) of each group; ranks are taken over all groups together."""
        weights = self.weights or (1.0,) * len(self.criteria)
        total: Scores = {}
        for criterion, weight in zip(self.criteria, weights, strict=True):
            for name, ranks in _ranks(criterion.score(target, calibration)).items():
                part = ranks * (weight / sum(weights))
                total[name] = total[name] + part if name in total else part
        return total


Norm = Literal["mean", "sum", "max", "gaussian"]
"""What a group's scores are divided by: the mean, the sum or the maximum of their absolutes; or they are brought to a
mean of 0 and a standard deviation of 1."""


@dataclass(frozen=True)
class Normalized:
    """Scores that are comparable between groups: each group's are normalised by its own.

    Layers differ in the scale of their weights and gradients; where units of all groups compete, that scale would
    decide which layer is thinned. SlimSAM (Chen et al. 2024, arXiv 2312.05284) ranks bottlenecks of all layers by
    "gaussian" scores. Within a group no order changes.

    Args:
        criterion: whose scores are normalised.
        by: how; a group whose scores are all equal gets 0 from "gaussian", one of zeros stays 0.
    """

    criterion: Criterion
    by: Norm = "gaussian"

    def __post_init__(self) -> None:
        if self.by not in get_args(Norm):
            raise ValueError(f"by must be one of {get_args(Norm)}, got {self.by!r}")

    def score(self, target: Any, calibration: Any = None) -> Scores:
        """(size,) scores of each group."""
        return {name: self._of(value) for name, value in self.criterion.score(target, calibration).items()}

    def _of(self, scores: Tensor) -> Tensor:
        if self.by == "gaussian":
            centred = scores - scores.mean()
            return centred / _or_one(scores.std(correction=0))
        sizes = scores.abs()
        return scores / _or_one({"mean": sizes.mean(), "sum": sizes.sum(), "max": sizes.amax()}[self.by])


@dataclass(frozen=True)
class Sampled:
    """Random scores whose top k is a sample without replacement, in proportion to a criterion's scores.

    SUNDAE's non-strict selection (a mixture of its scores with the uniform "all-pass" distribution) and
    Mini-Splatting's stochastic pruning (arXiv 2403.14166) are this around their scores. Units of probability 0 come
    last.

    Args:
        criterion: its scores, not negative, are the probabilities, up to a factor.
        uniform: share of the uniform distribution in the mixture, 0 to 1.
        seed: the same seed gives the same sample.
    """

    criterion: Criterion
    uniform: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.uniform <= 1:
            raise ValueError(f"uniform must be between 0 and 1, got {self.uniform}")

    def score(self, target: Any, calibration: Any = None) -> Scores:
        """(size,) float64 scores of each group, -inf for units that must not be drawn.

        Raises:
            ValueError: a score is negative or not finite.
        """
        scores = self.criterion.score(target, calibration)
        generator = torch.Generator().manual_seed(self.seed)
        total = sum(float(value.double().sum()) for value in scores.values())
        count = sum(len(value) for value in scores.values())
        return {
            name: gumbel_scores(
                (1 - self.uniform) * value.double() / (total or 1.0) + self.uniform / max(count, 1), generator
            )
            for name, value in scores.items()
        }


def _check_weights(criteria: tuple[Criterion, ...], weights: tuple[float, ...] | None, what: str) -> None:
    if not criteria:
        raise ValueError("at least one criterion is needed")
    if weights is not None and len(weights) != len(criteria):
        raise ValueError(f"{len(criteria)} criteria need as many {what}, got {len(weights)}")


def _or_one(divisor: Tensor) -> Tensor:
    return torch.where(divisor > 0, divisor, 1.0)


def _ones(scores: Scores) -> Scores:
    return {name: torch.ones_like(value, dtype=torch.float64) for name, value in scores.items()}


def _ranks(scores: Scores) -> dict[str, Tensor]:
    joint = average_ranks(torch.cat([value.double() for value in scores.values()]))
    return dict(zip(scores, joint.split([len(value) for value in scores.values()]), strict=True))
