"""How sure a mean is: bootstrap confidence intervals, of one set of values or of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from secateur.metrics.interval import Interval

Method = Literal["percentile", "BCa"]

_ROUNDING = 1e-12

_SMALL = 1000
_FEW = 16
"""Values are few where each is there so often in the mean."""


def mean_interval(
    values: Sequence[float] | Float[Tensor, " N"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    method: Method | None = None,
    seed: int = 0,
) -> Interval:
    """The mean of values, and its bootstrap interval (Efron 1987; scipy.stats.bootstrap); the same seed gives the same.

    The interval of values that differ by rounding alone is from the least to the greatest.

    Args:
        values: one of each image or prompt.
        confidence: of the interval.
        resamples: how often to draw as many values with repeats.
        method: "percentile", or "BCa": corrected for bias and skew. None: "BCa" up to 1,000 values, beyond which
            there is nothing left to correct, and the corrections take the square of their number.
        seed: of the draws.

    Raises:
        ValueError: there are fewer than 2 values, some are not finite, or an option is out of range.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"an interval needs at least 2 values in a row, got the shape {array.shape}")
    broken = int((~np.isfinite(array)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(array)} values are not finite")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence must be between 0 and 1 and resamples at least 1, got {confidence}, {resamples}")
    mean, spread = float(array.mean()), float(np.ptp(array))
    if spread <= _ROUNDING * np.abs(array).max():
        return Interval(mean, float(array.min()), float(array.max()), confidence, len(array))
    method = method or ("BCa" if len(array) <= _SMALL else "percentile")
    distinct, counts = np.unique(array, return_counts=True)
    if method == "percentile" and _FEW * len(distinct) <= len(array):
        low, high = _few_values(distinct, counts, confidence, resamples, seed)
        return Interval(mean, low, high, confidence, len(array))
    from scipy.stats import bootstrap  # a second to import, and the command line loads this package's neighbours

    # BCa divides by third powers, which tiny values underflow; a power of 2 leaves ties what they are.
    scale = 2.0 ** math.frexp(spread)[1]
    drawn = bootstrap(
        (array / scale,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, 1_000_000 // len(array)),
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    low, high = (scale * float(end) for end in (drawn.low, drawn.high))
    return Interval(mean, low, high, confidence, len(array))


def _few_values(
    distinct: NDArray[np.float64], counts: NDArray[np.int64], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """The percentile interval where values repeat, as right answers do: how often each is drawn is multinomial."""
    total = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples) @ distinct / total
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_interval(
    candidate: Sequence[float] | Float[Tensor, " N"],
    reference: Sequence[float] | Float[Tensor, " N"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    method: Method | None = None,
    seed: int = 0,
) -> Interval:
    """The mean of candidate - reference over pairs (the same seed, prompt or view), and its interval.

    An interval that leaves out 0 says that the two differ beyond the noise of the sample.

    Raises:
        ValueError: there are not as many values of the one as of the other, or what `mean_interval` raises.
    """
    one, other = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if one.shape != other.shape:
        raise ValueError(f"pairs need as many values of each, got the shapes {one.shape} and {other.shape}")
    return mean_interval((one - other).tolist(), confidence=confidence, resamples=resamples, method=method, seed=seed)
