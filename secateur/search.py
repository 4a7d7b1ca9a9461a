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
    fits and the smallest that does not, or after `MOST_TRIES`.

    Args:
        measure: count in [1, most] -> what must not exceed `limit`.
        limit: the budget.
        most: the largest count.
        guess: where to begin.
        tolerance: share of the limit that may be left unused.

    Returns:
        a count that was measured and fits, or None where none does.
    """
    aim = limit * (1.0 - tolerance / 2)
    fits, over = (0, 0.0), (most + 1, math.inf)
    for _ in range(MOST_TRIES):
        count = min(max(guess, fits[0] + 1), over[0] - 1)
        value = measure(count)
        if value <= limit:
            fits = (count, value)
        else:
            over = (count, value)
        if fits[1] >= limit * (1.0 - tolerance) or over[0] - fits[0] == 1:
            break
        if math.isinf(over[1]):
            guess = math.ceil(count * aim / value)
        else:
            slope = (over[1] - fits[1]) / (over[0] - fits[0])
            guess = fits[0] + round((aim - fits[1]) / slope)
    return fits[0] or None


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
    holds, falls = (most, measure(most)), (0, -math.inf)
    if holds[1] < target:
        return None
    for _ in range(MOST_TRIES):
        if holds[1] <= target + excess or holds[0] - falls[0] <= max(1.0, tolerance * holds[0]):
            break
        count = min(max(guess, falls[0] + 1), holds[0] - 1)
        value = measure(count)
        if value >= target:
            holds = (count, value)
        else:
            falls = (count, value)
        guess = _between(falls, holds, target + excess / 2)
    return holds[0]


def _between(falls: tuple[int, float], holds: tuple[int, float], target: float) -> int:
    """The count at which the measure should reach `target`, by its two bounds; never too near to either."""
    if falls[0] == 0:
        return holds[0] // 3
    low, high = math.log(falls[0]), math.log(holds[0])
    share = (target - falls[1]) / (holds[1] - falls[1]) if math.isfinite(holds[1]) else 0.5
    return round(math.exp(low + (high - low) * min(max(share, 0.1), 0.9)))
