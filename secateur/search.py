"""Finding the count that meets a budget which only trying can tell: few tries, each one whole simplification."""

from __future__ import annotations

import math
from collections.abc import Callable

MOST_TRIES = 10


def largest_within(
    measure: Callable[[int], float], limit: float, most: int, guess: int, tolerance: float = 0.03
) -> int | None:
    """The largest count whose measure is at most `limit`, for a measure that grows about as a power of the count.

    Stops at a count whose measure is within `tolerance` of the limit; or, where the measure jumps over that, within a
    hundredth of the smallest count that does not fit; or after `MOST_TRIES` with one that fits.

    Args:
        measure: count in [1, most] -> what must not exceed `limit`.
        limit: the budget.
        most: the largest count.
        guess: where to begin.
        tolerance: share of the limit that may be left unused.

    Returns:
        a count that was measured and fits, or None where not even 1 does.
    """
    aim = limit * (1.0 - tolerance / 2)
    tried: dict[float, float] = {}
    fits, over, used = 0, most + 1, 0.0
    while over - fits > max(1, over // 100 if fits and over <= most else 0) and (len(tried) < MOST_TRIES or not fits):
        gap = over - fits
        count = min(max(guess, fits + 1), over - 1)
        value = measure(count)
        tried[math.log(count)] = math.log(value)
        if value <= limit:
            fits, used = count, value
        else:
            over = count
        if used >= limit * (1.0 - tolerance):
            break
        guess = round(math.exp(min(_secant(tried, math.log(aim)), math.log(most))))
        if fits and over <= most and len(tried) > 3 and 2 * (over - fits) > gap:
            guess = (fits + over) // 2
    return fits or None


def smallest_holding(
    measure: Callable[[int], float],
    target: float,
    most: int,
    guess: int,
    tolerance: float = 0.03,
    excess: float = 0.1,
    tries: int = MOST_TRIES,
) -> int | None:
    """The smallest count whose measure is at least `target`, for a measure that grows about with the logarithm of it.

    Stops at a count whose measure exceeds the target by at most `excess`, or that is within `tolerance` of one that
    does not hold, or after so many tries; where none of them held, after `most`.

    Args:
        measure: count in [1, most] -> what must be at least `target`; it may be infinite.
        target: what must be held.
        most: the largest count.
        guess: where to begin.
        tolerance: share by which the count may be larger than need be.
        excess: by how much the measure may be better than need be.
        tries: the most, but for a last one of `most`.

    Returns:
        a count that was measured and holds, or None where not even `most` does.
    """
    tried: dict[float, float] = {}
    holds, falls = most + 1, 0
    while holds - falls > max(1.0, tolerance * holds):
        if len(tried) >= tries:
            if holds <= most:
                break
            guess = most
        count = min(max(guess, falls + 1), holds - 1)
        value = measure(count)
        if math.isfinite(value):
            tried[math.log(count)] = value
        if value >= target:
            holds = count
        else:
            falls = count
        if target <= value <= target + excess:
            break
        guess = _nearer(tried, target + excess / 2, falls, holds if holds <= most else None)
    return holds if holds <= most else None


def _nearer(tried: dict[float, float], aim: float, falls: int, holds: int | None) -> int:
    """The count at which the measure should reach `aim`, a step of 10 at most beyond what was tried."""
    low = math.log(falls or (holds or 1) / 10)
    high = math.log(holds or falls * 10)
    place = _secant(tried, aim) if len(tried) > 1 else low + (high - low) / 2
    margin = 0.1 * (high - low)
    return round(math.exp(min(max(place, low + margin), high - margin)))


def _secant(tried: dict[float, float], aim: float) -> float:
    """Where a line through the two tries nearest to `aim` reaches it; with one try, or without a rise, slope 1."""
    (x1, y1), (x0, y0) = (sorted(tried.items(), key=lambda pair: abs(pair[1] - aim))[:2] * 2)[:2]
    slope = (y1 - y0) / (x1 - x0) if x1 != x0 else 1.0
    return x1 + (aim - y1) / (slope if slope > 0 else 1.0)
