"""An axis of a plot: where values lie, and the few round ones that are written beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LOGARITHMIC = 40.0
"""Values whose largest is this many times the smallest are drawn by their powers of ten."""
_POWERS = (-307, 308)
"""Of ten: those that a float holds."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to pixels.

    Args:
        start: pixel of `low`.
        end: pixel of `high`.
        low: lower end, as `scale` gives it.
        high: upper end.
        ticks: round values between the ends.
        scale: what of a value is drawn: itself, or its logarithm.
    """

    start: float
    end: float
    low: float
    high: float
    ticks: tuple[float, ...]
    scale: Callable[[float], float]

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (self.scale(value) - self.low) / (self.high - self.low)


def axis_of(values: Sequence[float], start: float, end: float) -> Axis:
    """The axis that has room for all values and a margin around them; logarithmic where they span decades."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0.0 and high / low >= _LOGARITHMIC:
        return _logarithmic(low, high, start, end)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    bottom, top = low - margin, high + margin
    if low >= 0.0 > bottom:
        bottom = 0.0
    step = _round_step((top - bottom) / 4)
    ticks = tuple(index * step for index in range(math.ceil(bottom / step), math.floor(top / step) + 1))
    return Axis(start, end, bottom, top, ticks, float)


def _logarithmic(low: float, high: float, start: float, end: float) -> Axis:
    bottom, top = math.log10(low), math.log10(high)
    margin = 0.08 * (top - bottom)
    bottom, top = bottom - margin, top + margin
    every = math.ceil((top - bottom) / 5)
    powers = range(max(math.ceil(bottom), _POWERS[0]), min(math.floor(top), _POWERS[1]) + 1, every)
    return Axis(start, end, bottom, top, tuple(10.0**power for power in powers), math.log10)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
