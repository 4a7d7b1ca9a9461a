"""A mean with its confidence interval, as records hold it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval.

    Args:
        mean: of the values.
        low: lower end.
        high: upper end.
        confidence: share of such intervals that hold the true mean.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    confidence: float
    count: int
