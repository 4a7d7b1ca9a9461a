"""Scores + costs + budget -> which units stay.

An allocator is a plain function `(scores, groups, budget) -> Keep`:

- `allocate`: all units of all groups compete with one another;
- `allocate_per_group`: the budget is split over the groups first, and units compete inside their group;
- `allocate_knapsack`: the largest sum of scores that the budget holds, where costs differ.

Every allocator keeps the promise of the exact budget: the cost of what is kept never exceeds the budget, and no unit
that was left out would still fit. So with equal costs the budget is met exactly (rounded down to whole units).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from secateur.maths import order_by_score, topk_mask
from secateur.solvers.knapsack import integer_costs, knapsack
from secateur.units import Keep, Scores, UnitGroup

UNITS = "units"
"""Name of the cost that is 1 for every unit."""

# Sums of costs are float64; a budget that is missed by less than this share of itself counts as met.
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may stay: a share of the whole, or an absolute limit, in a cost that the groups name.

    `Budget(share=0.25)` is a quarter of the units, `Budget(limit=1000)` a thousand units, `Budget(share=0.5,
    cost="macs")` half the multiply-adds, `Budget(limit=2e6, cost="bytes")` two megabytes.

    Args:
        share: 0 to 1 of the groups' total cost.
        limit: absolute cost; more than everything costs is allowed, and keeps everything.
        cost: name of the cost in `UnitGroup.cost`, or "units", which costs 1 each.

    Raises:
        ValueError: not exactly one of `share` and `limit` is given, or it is out of range.
    """

    share: float | None = None
    limit: float | None = None
    cost: str = UNITS

    def __post_init__(self) -> None:
        if (self.share is None) == (self.limit is None):
            raise ValueError(f"a budget needs either a share or a limit, got share={self.share}, limit={self.limit}")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")
        if self.limit is not None and not self.limit >= 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")

    def amount(self, groups: Sequence[UnitGroup]) -> float:
        """The budget as an absolute cost."""
        if self.limit is not None:
            return float(self.limit)
        assert self.share is not None
        return self.share * sum(float(unit_costs(group, self.cost).sum()) for group in groups)


class Allocator(Protocol):
    """What `allocate` and `allocate_per_group` have in common."""

    def __call__(self, scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
        """Which units stay. Raises ValueError when the groups' floors alone exceed the budget."""
        ...


def unit_costs(group: UnitGroup, cost: str) -> Tensor:
    """(group.size,) float64 costs of the units of `group`.

    Raises:
        ValueError: the group has no such cost, or the costs are misshapen, negative or not finite.
    """
    if cost == UNITS and UNITS not in group.cost:
        return torch.ones(group.size, dtype=torch.float64)
    if cost not in group.cost:
        raise ValueError(f"group {group.name!r} has no cost {cost!r}; it has {sorted(group.cost)} and {UNITS!r}")
    costs = group.cost[cost].detach().cpu().double()
    if costs.shape != (group.size,):
        raise ValueError(f"cost {cost!r} of group {group.name!r} must be ({group.size},), got {tuple(costs.shape)}")
    if not bool(torch.isfinite(costs).all()) or bool((costs < 0).any()):
        raise ValueError(f"cost {cost!r} of group {group.name!r} must be finite and not negative")
    return costs


def allocate(scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
    """Let all units of all groups compete: the best stay while they fit.

    Each group first keeps its `min_keep` best units. The rest are taken from the highest score to the lowest (equal
    scores: earlier group, then lower index); a unit that does not fit any more is passed over and cheaper ones behind
    it still get their chance. With equal costs that is the exact top-k (for magnitudes: global magnitude pruning with a
    minimum threshold, arXiv 2209.14624).

    Args:
        scores: group name -> (size,), the higher the better; infinities allowed.
        groups: the units, with their costs and floors.
        budget: how much may stay.

    Returns:
        Group name -> (size,) bool, on the device of that group's scores.

    Raises:
        ValueError: scores are missing, misshapen or NaN, a cost is missing, or the floors exceed the budget.
    """
    pool = _Pool(scores, groups, budget)
    pool.spend(pool.amount)
    return pool.keep()


def allocate_per_group(
    scores: Scores,
    groups: Sequence[UnitGroup],
    budget: Budget,
    densities: Mapping[str, float] | None = None,
) -> Keep:
    """Split the budget over the groups, and let units compete inside their group.

    Group g may spend `scale * density_g * cost_g`, held between the cost of its floor and its whole cost, with the one
    scale that spends the budget. What whole units leave over goes to the groups with the largest remainder, a unit at a
    time (the largest-remainder method).

    Args:
        scores: group name -> (size,), the higher the better; never compared between groups.
        groups: the units, with their costs and floors.
        budget: how much may stay.
        densities: group name -> relative density; None keeps the same share of every group.

    Returns:
        Group name -> (size,) bool, on the device of that group's scores.

    Raises:
        ValueError: as for `allocate`, or a density is missing or not positive.
    """
    pool = _Pool(scores, groups, budget)
    wanted = [1.0 if densities is None else densities.get(group.name, 0.0) for group in groups]
    if not all(density > 0 for density in wanted):
        raise ValueError(f"densities need a positive number for each of {[g.name for g in groups]}, got {densities}")
    quotas = _quotas(pool, wanted)
    for index, quota in enumerate(quotas):
        pool.spend(quota, only=index)
    spent = pool.spent
    while True:
        by_remainder = sorted(range(len(groups)), key=lambda index: spent[index] - quotas[index])
        taken = next((index for index in by_remainder if pool.take_next(index, sum(spent))), None)
        if taken is None:
            return pool.keep()
        spent[taken] = pool.spent_on(taken)


def allocate_knapsack(scores: Scores, groups: Sequence[UnitGroup], budget: Budget, cells: int = 10_000) -> Keep:
    """Keep the units of the largest total score that the budget holds: an exact 0/1 knapsack.

    Aflalo et al.: Knapsack Pruning with Inner Distillation (arXiv 2002.08258), whose scores are first-order Taylor
    terms and whose costs are multiply-adds. Scores are worths here, which `allocate` only ranks: twice the score is
    worth twice the cost. Each group first keeps its `min_keep` best units; what the optimum leaves of the budget is
    filled by score. With equal costs that is `allocate`.

    Args:
        scores: group name -> (size,), finite; those below 0 count as 0.
        groups: the units, with their costs and floors.
        budget: how much may stay.
        cells: the most units of capacity of the dynamic programme (see `secateur.solvers.knapsack.integer_costs`):
            costs whose common divisor is too small for them are rounded up. It takes units x cells steps, and as many
            bits.

    Raises:
        ValueError: as for `allocate`, or a score is infinite.
    """
    pool = _Pool(scores, groups, budget)
    values, costs = torch.cat(pool.scores), torch.cat(pool.costs)
    if bool(torch.isinf(values).any()):
        raise ValueError("a knapsack needs finite scores; they are infinite somewhere")
    kept = torch.cat(pool.kept)
    free = ~kept
    left = max(0.0, pool.amount - float(costs[kept].sum()))
    (prices,), capacity = integer_costs([costs[free].numpy()], left, cells)
    kept[free] = torch.from_numpy(knapsack(values[free].numpy(), prices, capacity))
    pool.kept = list(kept.split([group.size for group in groups]))
    pool.spend(pool.amount)
    return pool.keep()


def fill(chosen: Keep, scores: Scores, groups: Sequence[UnitGroup], budget: Budget, order: Sequence[int]) -> Keep:
    """Add to a choice what the rest of the budget still holds: the best units of one group, then of the next.

    Args:
        chosen: which units stay anyway; so do each group's `min_keep` best.
        scores: group name -> (size,), the higher the better.
        groups: the units, with their costs and floors.
        budget: how much may stay, of which `chosen` is a part.
        order: indices of all groups, the first to be filled first.

    Raises:
        ValueError: as for `allocate`.
    """
    pool = _Pool(scores, groups, budget)
    pool.kept = [kept | chosen[group.name].cpu() for kept, group in zip(pool.kept, groups, strict=True)]
    for index in order:
        others = sum(pool.spent) - pool.spent[index]
        pool.spend(pool.amount - others, only=index)
    return pool.keep()


def erdos_renyi_kernel(shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Relative densities that keep small layers denser: the sum of a weight's dimensions over their product.

    Erdos-Renyi-Kernel (Evci et al., RigL, arXiv 1911.11134, section 3; for matrices it is plain Erdos-Renyi). Densities
    above one saturate and the rest is re-scaled, which `allocate_per_group` does.

    Args:
        shapes: group name -> shape of its weight, (out, in, *kernel).
    """
    return {name: sum(shape) / prod(shape) for name, shape in shapes.items()}


class _Pool:
    """Units still to be chosen, and what was spent so far. Works on the CPU: allocation is a sort and a few sums."""

    def __init__(self, scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> None:
        self.groups = groups
        self.devices = [checked_scores(scores, group).device for group in groups]
        self.scores = [scores[group.name].detach().cpu().double() for group in groups]
        self.costs = [unit_costs(group, budget.cost) for group in groups]
        self.kept = [topk_mask(s, min(g.min_keep, g.size)) for s, g in zip(self.scores, groups, strict=True)]
        self.floors = self.spent
        self.amount = budget.amount(groups) * (1 + _TOLERANCE)
        if sum(self.floors) > self.amount:
            floors = {group.name: group.min_keep for group in groups}
            raise ValueError(
                f"a budget of {budget.amount(groups):g} {budget.cost} cannot hold the floors {floors}, "
                f"which cost {sum(self.floors):g}; raise the budget or lower min_keep"
            )

    @property
    def spent(self) -> list[float]:
        return [self.spent_on(index) for index in range(len(self.groups))]

    def spent_on(self, index: int) -> float:
        return float(self.costs[index][self.kept[index]].sum())

    def spend(self, amount: float, only: int | None = None) -> None:
        """Take the best units, of all groups or of one, while the kept ones of those groups cost at most `amount`."""
        chosen = range(len(self.groups)) if only is None else [only]
        kept = torch.cat([self.kept[index] for index in chosen])
        costs = torch.cat([self.costs[index] for index in chosen])
        order = order_by_score(torch.cat([self.scores[index] for index in chosen]))
        order = order[~kept[order]]
        left = amount - float(costs[kept].sum())
        while len(order):
            fits = int((costs[order].cumsum(0) <= left).sum())
            kept[order[:fits]] = True
            left -= float(costs[order[:fits]].sum())
            # The unit behind the last that fits is dearer than what is left, and so is every other of its price: one
            # pass for each distinct cost at most.
            order = order[fits:]
            order = order[costs[order] <= left]
        for index, part in zip(chosen, kept.split([self.groups[index].size for index in chosen]), strict=True):
            self.kept[index] = part

    def take_next(self, index: int, spent: float) -> bool:
        """Take the best unit of one group that still fits in the whole budget, of which `spent` is gone."""
        left = self.amount - spent
        candidates = (~self.kept[index]) & (self.costs[index] <= left)
        if not bool(candidates.any()):
            return False
        position = candidates.nonzero()[:, 0]
        best = position[int(order_by_score(self.scores[index][position])[0])]
        self.kept[index][best] = True
        return True

    def keep(self) -> Keep:
        return {g.name: kept.to(d) for g, kept, d in zip(self.groups, self.kept, self.devices, strict=True)}


def checked_scores(scores: Scores, group: UnitGroup) -> Tensor:
    """The (size,) scores of the group; raises ValueError if they are missing, misshapen or NaN, naming the group."""
    if group.name not in scores:
        raise ValueError(f"no scores for group {group.name!r}; there are scores for {sorted(scores)}")
    value = scores[group.name]
    if value.shape != (group.size,):
        raise ValueError(f"scores of group {group.name!r} must be ({group.size},), got {tuple(value.shape)}")
    # A sum of bools is taken of as many int64, so it waits until there is something to count.
    nan = torch.isnan(value)
    if bool(nan.any()):
        raise ValueError(f"scores of group {group.name!r} hold {int(nan.sum())} NaN among {group.size} values")
    return value


def _quotas(pool: _Pool, densities: Sequence[float]) -> list[float]:
    """Per-group amounts clip(scale * density * cost, floor, whole cost) that sum to the budget, found by bisection."""
    totals = [float(costs.sum()) for costs in pool.costs]
    goal = min(pool.amount, sum(totals))

    def at(scale: float) -> list[float]:
        parts = zip(densities, totals, pool.floors, strict=True)
        return [min(max(scale * density * total, floor), total) for density, total, floor in parts]

    low, high = 0.0, 1.0 / min(densities)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) <= goal else (low, middle)
    return at(low)
