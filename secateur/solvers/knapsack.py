"""Knapsacks by exact dynamic programming over integer costs, and by a Lagrange multiplier where costs are too fine.

- `knapsack`: which of n things to take (Bellman's recursion), O(n capacity) time and n capacity / 8 bytes;
- `choose_options`: one option of each group (the multiple-choice knapsack), O(options capacity) time and a 4-byte
  integer for each group and unit of capacity;
- `choose_by_multiplier`: the same by bisection, optimal where each group's curve is convex, for costs of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Costs beyond this lose integers in float64.
_LARGEST_EXACT = 2.0**53

# Decimals of a cost that may have a common divisor.
_MOST_DECIMALS = 4


def knapsack(values: ArrayLike, costs: ArrayLike, capacity: int) -> NDArray[np.bool_]:
    """(n,) True for the things of largest total value whose total cost is at most `capacity`.

    Among equal totals the earlier things are taken. Things of no value are left.

    Args:
        values: (n,) finite.
        costs: (n,) integers, not negative.
        capacity: integer, not negative.

    Raises:
        ValueError: shapes do not agree, or a number is out of range.
    """
    worth, price = _numbers(values, costs, "the knapsack")
    _check_capacity(capacity)
    capacity = min(capacity, int(price.sum()))
    best = np.zeros(capacity + 1)
    taken = np.zeros((len(worth), (capacity + 8) // 8), dtype=np.uint8)
    for index, (value, cost) in enumerate(zip(worth, price, strict=True)):
        if cost > capacity or value <= 0:
            continue
        with_it = best[: capacity + 1 - cost] + value
        better = np.zeros(capacity + 1, dtype=bool)
        better[cost:] = with_it > best[cost:]
        best[cost:] = np.maximum(best[cost:], with_it)
        taken[index] = np.packbits(better)
    chosen = np.zeros(len(worth), dtype=bool)
    left = capacity
    for index in range(len(worth) - 1, -1, -1):
        if taken[index, left // 8] >> (7 - left % 8) & 1:
            chosen[index] = True
            left -= int(price[index])
    return chosen


def choose_options(
    losses: Sequence[ArrayLike], costs: Sequence[ArrayLike], capacity: int, names: Sequence[str] | None = None
) -> list[int]:
    """The index of one option of each group, of least total loss at a total cost of at most `capacity`.

    Among equal totals the options of lower index win, in earlier groups last.

    Args:
        losses: a list of numbers for each group; infinite where an option is out of the question.
        costs: integers, not negative, as many.
        capacity: integer, not negative.
        names: what errors call the groups.

    Raises:
        ValueError: shapes do not agree, a number is out of range, or not even the cheapest options fit.
    """
    names = [f"group {index}" for index in range(len(losses))] if names is None else names
    tables = [_numbers(*pair) for pair in zip(losses, costs, names, strict=True)]
    _check_capacity(capacity)
    _check_cheapest(tables, capacity, names)
    capacity = min(capacity, sum(int(price.max()) for _, price in tables))
    best = np.zeros(capacity + 1)
    picks = np.full((len(tables), capacity + 1), -1, dtype=np.int32)
    for index, (lost, price) in enumerate(tables):
        following = np.full(capacity + 1, np.inf)
        for option, (loss, cost) in enumerate(zip(lost, price, strict=True)):
            if cost > capacity or not np.isfinite(loss):
                continue
            total = best[: capacity + 1 - cost] + loss
            better = total < following[cost:]
            following[cost:][better] = total[better]
            picks[index, cost:][better] = option
        best = following
    chosen: list[int] = []
    left = capacity
    for index in range(len(tables) - 1, -1, -1):
        option = int(picks[index, left])
        chosen.insert(0, option)
        left -= int(tables[index][1][option])
    return chosen


def choose_by_multiplier(
    losses: Sequence[ArrayLike], costs: Sequence[ArrayLike], capacity: float, names: Sequence[str] | None = None
) -> tuple[list[int], float]:
    """One option of each group by min sum of loss + multiplier * cost, with the least multiplier whose choice fits.

    For a given multiplier every group decides for itself (Shoham and Gersho: Efficient bit allocation, 1988). The
    choice is the best at its own total cost; it reaches only the options on the lower convex hull of each group, so up
    to one group's step of the budget stays unused.

    Args:
        losses: a list of numbers for each group; infinite where an option is out of the question.
        costs: not negative, as many; any size.
        capacity: not negative.
        names: what errors call the groups.

    Returns:
        The indices, and the multiplier: 0 where the least lossy options fit.

    Raises:
        ValueError: as for `choose_options`.
    """
    names = [f"group {index}" for index in range(len(losses))] if names is None else names
    tables = [_numbers(*pair, whole=False) for pair in zip(losses, costs, names, strict=True)]
    _check_cheapest(tables, capacity, names)

    def choice(multiplier: float) -> list[int]:
        # Ties go to the cheaper option.
        return [int(np.lexsort((price, lost + multiplier * price))[0]) for lost, price in tables]

    def spent(chosen: list[int]) -> float:
        return math.fsum(float(price[option]) for (_, price), option in zip(tables, chosen, strict=True))

    free = choice(0.0)
    if spent(free) <= capacity:
        return free, 0.0
    # Beyond the steepest slope between any two options of a group, each group takes its cheapest.
    low, high = 0.0, 2 * max(_steepest(lost, price) for lost, price in tables) + 1e-300
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if spent(choice(middle)) <= capacity else (middle, high)
    return choice(high), high


def integer_costs(
    costs: Sequence[ArrayLike], capacity: float, cells: int = 10_000
) -> tuple[list[NDArray[np.int64]], int]:
    """Integer costs and capacity for the exact solvers: never over the budget.

    Costs of few decimals are divided by the largest number that divides them all. Where that leaves more than `cells`
    units of capacity, or costs have more decimals, the budget is cut into that many cells and costs are rounded up to
    them: what is found is then optimal for the rounded costs, and each thing taken may waste up to a cell.

    Args:
        costs: arrays of costs, not negative.
        capacity: the budget, not negative.
        cells: the most units of capacity.

    Raises:
        ValueError: a cost or the capacity is negative or not finite.
    """
    arrays = [np.asarray(each, dtype=np.float64) for each in costs]
    together = np.concatenate([each.ravel() for each in arrays]) if arrays else np.zeros(0)
    if not np.isfinite(together).all() or (together < 0).any() or not (math.isfinite(capacity) and capacity >= 0):
        raise ValueError("costs and capacity must be finite and not negative")
    # What costs more than everything that fits is all the same.
    capacity = min(capacity, float(together.sum()))
    for decimals in range(_MOST_DECIMALS + 1):
        scaled = together * 10.0**decimals
        if scaled.size and scaled.max() >= _LARGEST_EXACT:
            break
        if (np.abs(scaled - scaled.round()) <= 1e-9 * scaled).all():
            divisor = int(np.gcd.reduce(scaled.round().astype(np.int64), initial=0)) or 1
            units = math.floor(capacity * 10.0**decimals / divisor * (1 + 1e-12))
            if units <= cells:
                return [np.rint(each * 10.0**decimals / divisor).astype(np.int64) for each in arrays], units
            break
    cell = capacity / cells
    if cell == 0:
        return [np.where(each > 0, 1, 0).astype(np.int64) for each in arrays], 0
    # A cost that is a whole number of cells but for rounding must not take another.
    return [np.ceil(np.minimum(each / cell, cells + 1) * (1 - 1e-12)).astype(np.int64) for each in arrays], cells


def _numbers(
    values: ArrayLike, costs: ArrayLike, name: str, whole: bool = True
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    worth, price = np.asarray(values, dtype=np.float64), np.asarray(costs)
    if worth.ndim != 1 or worth.shape != price.shape:
        raise ValueError(f"{name}: values and costs must be lists of one length, got {worth.shape} and {price.shape}")
    if np.isnan(worth).any():
        raise ValueError(f"{name}: {int(np.isnan(worth).sum())} of {len(worth)} values are NaN")
    if np.isneginf(worth).any() or (name == "the knapsack" and np.isposinf(worth).any()):
        raise ValueError(f"{name}: values must be finite")
    if whole and not np.issubdtype(price.dtype, np.integer) and price.size:
        raise ValueError(f"{name}: costs must be integers, got {price.dtype}; see integer_costs")
    if (price < 0).any() or not np.isfinite(price).all():
        raise ValueError(f"{name}: costs must be finite and not negative")
    return worth, price.astype(np.int64 if whole else np.float64)


def _check_capacity(capacity: int) -> None:
    if not isinstance(capacity, int | np.integer) or capacity < 0:
        raise ValueError(f"capacity must be an integer that is not negative, got {capacity!r}")


def _check_cheapest(
    tables: Sequence[tuple[NDArray[np.float64], NDArray[Any]]], capacity: float, names: Sequence[str]
) -> None:
    possible = [price[np.isfinite(lost)] for lost, price in tables]
    without = [name for name, price in zip(names, possible, strict=True) if not price.size]
    if without:
        raise ValueError(f"there is no option of finite loss for {without}")
    least = sum(price.min() for price in possible)
    if least > capacity:
        cheapest = {name: float(price.min()) for name, price in zip(names, possible, strict=True)}
        raise ValueError(
            f"the cheapest options cost {least:g} together, which a capacity of {capacity:g} cannot hold: {cheapest}"
        )


def _steepest(lost: NDArray[np.float64], price: NDArray[Any]) -> float:
    finite = np.isfinite(lost)
    order = np.argsort(price[finite], kind="stable")
    drop = np.ptp(lost[finite]) if finite.any() else 0.0
    gaps = np.diff(price[finite][order].astype(np.float64))
    gaps = gaps[gaps > 0]
    return float(drop / gaps.min()) if gaps.size else 0.0
