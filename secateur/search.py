"""Finding the count that meets a budget which only trying can tell: few tries, each one whole simplification."""

from __future__ import annotations

import math
from collections.abc import Callable

MOST_TRIES = 10


def largest_within(
    measure: Callable[[int], float], limit: float, most: int, guess: int, tolerance: float = 0.03
) -> int | None:
    """The largest count whose measure is at most `limit`, for a measure that grows about in proportion to the count.

    Stops at a count whose measure is within `tolerance` of the limit, or when no count is left between the largest that
    fits and the smallest that does not, or after `MOST_TRIES` with one that fits.

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
    tried: dict[int, float] = {}
    fits, over = 0, most + 1
    while over - fits > 1 and (len(tried) < MOST_TRIES or not fits):
        count = min(max(guess, fits + 1), over - 1)
        tried[count] = measure(count)
        if tried[count] <= limit:
            fits = count
        else:
            over = count
        if tried.get(fits, 0.0) >= limit * (1.0 - tolerance):
            break
        margin = (over - fits) // 20
        low, high = (fits + margin if fits else 1), (over - margin if over <= most else most)
        guess = min(max(round(_secant(tried, aim)), low), high)
    return fits or None


def smallest_holding(
    measure: Callable[[int], float], target: float, most: int, guess: int, tolerance: float = 0.03, excess: float = 0.1
) -> int | None:
    """The smallest count whose measure is at least `target`, for a measure that grows about with the logarithm of it.

    Stops at a count whose measure exceeds the target by at most `excess`, or that is within `tolerance` of one that
    does not hold, or after `MOST_TRIES`.

    Args:
        measure: count in [1, most] -> what must be at least `target`; it may be infinite at `most`.
        target: what must be held.
        most: the largest count, measured first: where it does not hold, nothing does.
        guess: where to go from there.
        tolerance: share by which the count may be larger than need be.
        excess: by how much the measure may be better than need be.

    Returns:
        a count that was measured and holds, or None where none does.
    """
    tried = {math.log(most): measure(most)}
    holds, falls = most, 0
    if tried[math.log(most)] < target:
        return None
    while len(tried) < MOST_TRIES and holds - falls > max(1.0, tolerance * holds):
        if tried[math.log(holds)] <= target + excess:
            break
        count = min(max(guess, falls + 1), holds - 1)
        value = tried[math.log(count)] = measure(count)
        if value >= target:
            holds = count
        else:
            falls = count
        finite = {place: value for place, value in tried.items() if math.isfinite(value)}
        low, high = math.log(max(falls, holds / 10)), math.log(holds)
        place = _secant(finite, target + excess / 2) if len(finite) > 1 else high - math.log(3)
        guess = round(math.exp(min(max(place, low + 0.1 * (high - low)), high - 0.1 * (high - low))))
    return holds


def _secant(tried: dict[int, float] | dict[float, float], aim: float) -> float:
    """Where a line through the two tries nearest to `aim` reaches it; with one try, a line through the origin."""
    (x1, y1), (x0, y0) = (*sorted(tried.items(), key=lambda pair: abs(pair[1] - aim))[:2], (0.0, 0.0))[:2]
    slope = (y1 - y0) / (x1 - x0)
    return x1 + (aim - y1) / slope if slope > 0 else x1 * aim / y1
