"""Numbers as measurements: counted ones, means over samples, times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.evaluation.record import Better, Measurement, Noise
from secateur.metrics.interval import Interval
from secateur.metrics.speed import Speed


def counted(value: float, unit: str, label: str, better: Better = "lower") -> Measurement:
    """A number that would be the same if it were counted again: bytes, parameters, multiply-adds."""
    return Measurement(float(value), unit, better, label, noise=Noise("counted", 0.0))


def averaged(
    values: Sequence[float],
    unit: str,
    label: str,
    better: Better,
    *,
    reference: Sequence[float] | None = None,
    seed: int = 0,
) -> Measurement:
    """The mean over samples, with its standard error and bootstrap interval; those only where all values are finite.

    Args:
        values: one a view, image or answer.
        unit: of each.
        label: what people call the mean.
        better: which way is better.
        reference: the reference's values on the same samples, for the paired difference.
        seed: of the bootstrap's draws.

    Raises:
        ValueError: there are no values, or not as many as the reference has.
    """
    from secateur.metrics.distribution.bootstrap import mean_interval, paired_interval

    if not values:
        raise ValueError(f"{label}: a mean needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    sure = len(array) > 1 and bool(np.isfinite(array).all())
    paired = sure and reference is not None and bool(np.isfinite(np.asarray(reference)).all())
    return mean_of(
        float(array.mean()),
        unit,
        label,
        better,
        samples=len(array),
        error=standard_error(values),
        interval=mean_interval(values, seed=seed) if sure else None,
        change=paired_interval(values, reference, seed=seed) if paired and reference is not None else None,
    )


def pack_answers(right: Sequence[bool] | Sequence[float]) -> str:
    """Which answers are right, as `Measurement.answers` has it: hexadecimal digits of a bit each, the first highest."""
    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None where there are fewer than two values, or some are not finite."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2 or not np.isfinite(array).all():
        return None
    return float(array.std(ddof=1)) / math.sqrt(len(array))


def mean_of(
    value: float,
    unit: str,
    label: str,
    better: Better,
    *,
    samples: int | None = None,
    error: float | None = None,
    interval: Interval | None = None,
    change: Interval | None = None,
    answers: str | None = None,
) -> Measurement:
    """A mean that was taken elsewhere, with what is known of how sure it is.

    Args:
        value: the mean; may be infinite, or NaN.
        unit: of it.
        label: what people call it.
        better: which way is better.
        samples: how many it was taken over.
        error: standard error of it; None: not known.
        interval: bootstrap interval of it.
        change: paired bootstrap interval of the difference to the reference.
        answers: which samples are right, as `pack_answers` has it.
    """
    finite = math.isfinite(value)
    return Measurement(
        value if finite else None,
        unit,
        better,
        label,
        value == math.inf,
        samples,
        None if error is None or not finite else Noise("standard error", error),
        interval,
        change,
        answers,
    )


def timed(speed: Speed, label: str) -> Measurement:
    """The time of a frame or a call in milliseconds: the median, with all its repeats."""
    return _repeated(speed.median_ms, speed.times_ms, "ms", label, "lower")


def rate(times_ms: Sequence[float], label: str, *, value: float | None = None, batch: int = 1) -> Measurement:
    """How many a second, from the times of repeats.

    Args:
        times_ms: of each repeat.
        label: what people call it.
        value: the rate, where it is not that of the median time.
        batch: how many are done in such a time.
    """
    rates = [1000.0 * batch / time for time in times_ms]
    middle = 1000.0 * batch / statistics.median(times_ms) if value is None else value
    return _repeated(middle, rates, "1/s", label, "higher")


def timing_details(speed: Speed) -> dict[str, Any]:
    """How a time was taken, for a subject's details: what neither its measurement nor the run says."""
    return {
        "first_call_ms": speed.first_call_ms,
        "frames": speed.frames,
        "load_average": speed.load_average,
        "clock": speed.clock,
    }


def _repeated(value: float, repeats: Sequence[float], unit: str, label: str, better: Better) -> Measurement:
    spread = statistics.stdev(repeats) if len(repeats) > 1 else 0.0
    return Measurement(value, unit, better, label, samples=len(repeats), noise=Noise("repeats", spread, tuple(repeats)))
