"""Budgets split by what each group loses at each count, and not by how single units compare.

A `Curve` says what a group loses when only its best units stay. Losses of different groups add up, nearly, while they
are small (Xu et al., RD-Prune, arXiv 2308.10438, section 3.2), so the best split is a multiple-choice knapsack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.allocation import Budget, checked_scores, fill, unit_costs
from secateur.importance.objective import mask_of_ones
from secateur.maths import order_by_score, topk_mask
from secateur.solvers.knapsack import choose_by_multiplier, choose_options, integer_costs
from secateur.units import Keep, Prunable, Scores, UnitGroup

Solver = Literal["exact", "multiplier"]
"""By dynamic programming, or by bisection of a Lagrange multiplier, which finds what is on the convex hulls."""


@dataclass(frozen=True, eq=False)
class Curve:
    """What a group loses when only so many of its units stay, the best by score.

    Args:
        counts: (levels,) int64, ascending; the last is the whole group.
        losses: (levels,) finite, of one meaning for all groups.

    Raises:
        ValueError: the two differ in length, counts do not ascend, or a loss is not finite.
    """

    counts: Int[Tensor, " levels"]
    losses: Float[Tensor, " levels"]

    def __post_init__(self) -> None:
        if self.counts.ndim != 1 or self.counts.shape != self.losses.shape or not len(self.counts):
            raise ValueError(
                f"a curve needs as many counts as losses, got {tuple(self.counts.shape)} and {tuple(self.losses.shape)}"
            )
        if bool((self.counts.diff() <= 0).any()) or int(self.counts[0]) < 0:
            raise ValueError(f"counts must ascend from 0 or more, got {self.counts.tolist()}")
        if not bool(torch.isfinite(self.losses).all()):
            raise ValueError("losses of a curve must be finite")


def levels(size: int, steps: int, least: int = 0) -> Int[Tensor, " levels"]:
    """Counts from `least` to `size` in at most `steps` equal steps."""
    return torch.linspace(least, size, steps + 1, dtype=torch.float64).round().long().unique()


@torch.no_grad()
def measure_curves(target: Prunable, run: Callable[[Any], Tensor], scores: Scores, steps: int = 20) -> dict[str, Curve]:
    """Group name -> the mean squared change of the output when that group alone keeps only its best units.

    RD-Prune's output distortion, on the grid of counts that `steps` makes: one run a level, without gradients.

    Args:
        target: what is pruned; masks stand for cuts.
        run: target -> output on the calibration data; deterministic.
        scores: which units of a group are the best; magnitudes in the paper.
        steps: levels of each group, from its floor to all.
    """
    dense = run(target)
    curves = {}
    for group in target.groups():
        counts = levels(group.size, steps, min(group.min_keep, group.size))
        losses = [
            _distortion(target, run, dense, {group.name: topk_mask(scores[group.name], int(count))})
            for count in counts[:-1]
        ]
        curves[group.name] = Curve(counts, torch.tensor([*losses, 0.0], dtype=torch.float64))
    return curves


@torch.no_grad()
def additivity(target: Prunable, run: Callable[[Any], Tensor], keep: Keep) -> float:
    """Sum of the distortions of pruning each group alone, over that of pruning all: 1 where losses add up.

    Infinite where only the joint distortion is 0.
    """
    dense = run(target)
    singles = sum(_distortion(target, run, dense, {group.name: keep[group.name]}) for group in target.groups())
    joint = _distortion(target, run, dense, keep)
    return singles / joint if joint else (1.0 if not singles else float("inf"))


def _distortion(target: Prunable, run: Callable[[Any], Tensor], dense: Tensor, keep: Keep) -> float:
    masks = {name: ones.detach() for name, ones in mask_of_ones(target).items()}
    masks |= {name: kept.to(masks[name]) for name, kept in keep.items()}
    with target.masked(masks):
        return float((run(target) - dense).double().square().mean())


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """An allocator: the counts of least total loss, the best units of each group staying.

    With "exact" it is RD-Prune's dynamic programme over layers (arXiv 2308.10438, section 3.3); with "multiplier" the
    Lagrangian form that LPViT solves (Xu et al., arXiv 2407.02068), for budgets too fine for a table. A count between
    two levels is not considered, but what the budget has left is filled with the best units, group by group, where the
    curve falls fastest: so the total is exact.

    Args:
        curves: group name -> what it loses.
        solver: how.
        cells: the most units of capacity of the dynamic programme.
    """

    curves: Mapping[str, Curve]
    solver: Solver = "exact"
    cells: int = 10_000

    def __post_init__(self) -> None:
        if self.solver not in ("exact", "multiplier"):
            raise ValueError(f"solver must be 'exact' or 'multiplier', got {self.solver!r}")

    def __call__(self, scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
        """Which units stay.

        Raises:
            ValueError: a group has no curve or one of another size, the budget does not hold the least counts, or as
                for `secateur.allocation.allocate`.
        """
        curves = [self._curve(group) for group in groups]
        costs = [
            np.concatenate(
                [[0.0], unit_costs(group, budget.cost)[order_by_score(checked_scores(scores, group).cpu())].cumsum(0)]
            )
            for group in groups
        ]
        priced = [table[curve.counts.numpy()] for table, curve in zip(costs, curves, strict=True)]
        # Levels below the floor are out of the question.
        losses = [
            np.where(curve.counts.numpy() < min(group.min_keep, group.size), np.inf, curve.losses.double().numpy())
            for curve, group in zip(curves, groups, strict=True)
        ]
        names = [group.name for group in groups]
        options = _solved(losses, priced, budget.amount(groups), names, self.solver, self.cells)
        chosen = {
            name: topk_mask(scores[name], int(curve.counts[option]))
            for name, curve, option in zip(names, curves, options, strict=True)
        }
        slopes = [
            (curve.losses[option] - curve.losses[option + 1]) / max(price[option + 1] - price[option], 1e-300)
            if option + 1 < len(price)
            else -np.inf
            for curve, price, option in zip(curves, priced, options, strict=True)
        ]
        return fill(chosen, scores, groups, budget, sorted(range(len(groups)), key=lambda index: -float(slopes[index])))

    def _curve(self, group: UnitGroup) -> Curve:
        if group.name not in self.curves:
            raise ValueError(f"there is no curve for group {group.name!r}; there are {sorted(self.curves)}")
        curve = self.curves[group.name]
        if int(curve.counts[-1]) != group.size:
            raise ValueError(f"the curve of group {group.name!r} ends at {int(curve.counts[-1])} of {group.size} units")
        return curve


def allocate_by_tables(
    scores: Scores,
    groups: Sequence[UnitGroup],
    tables: Mapping[str, Float[Tensor, " counts"]],
    limit: float,
    cells: int = 10_000,
) -> Keep:
    """The largest sum of scores at a cost that depends on how many units of each group stay.

    Humble et al.: Soft Masking for Cost-Constrained Channel Pruning (arXiv 2211.02206), section 3.3: a multiple-choice
    knapsack whose options are the counts of a layer, worth the scores of its best channels; for costs that are
    measured, and fall in steps (latency). Among equal worths smaller counts win. With costs that are a constant times
    the count it is `secateur.allocation.allocate_knapsack` for scores that are not negative.

    Args:
        scores: group name -> (size,) finite.
        groups: the units and their floors.
        tables: group name -> (size + 1,) cost of keeping 0, 1, ... size units.
        limit: the most that all may cost.
        cells: the most units of capacity of the dynamic programme.

    Raises:
        ValueError: scores or costs are missing, misshapen or not finite, or the limit does not hold the floors.
    """
    worths, prices = [], []
    for group in groups:
        if group.name not in tables or tables[group.name].shape != (group.size + 1,):
            raise ValueError(
                f"group {group.name!r} needs a table of {group.size + 1} costs, for 0 to {group.size} units"
            )
        if not bool(torch.isfinite(checked_scores(scores, group)).all()):
            raise ValueError(f"scores of group {group.name!r} must be finite")
        best = scores[group.name].cpu().double().sort(descending=True).values.cumsum(0).numpy()
        worth = np.concatenate([[0.0], best])
        worths.append(np.where(np.arange(group.size + 1) < min(group.min_keep, group.size), np.inf, -worth))
        prices.append(tables[group.name].detach().cpu().double().numpy())
    names = [group.name for group in groups]
    counts = _solved(worths, prices, limit, names, "exact", cells)
    return {name: topk_mask(scores[name], count) for name, count in zip(names, counts, strict=True)}


def _solved(
    losses: list[np.ndarray], costs: list[np.ndarray], limit: float, names: list[str], solver: Solver, cells: int
) -> list[int]:
    # Sums of costs are float64, as in allocation.
    limit *= 1 + 1e-9
    freely, multiplier = choose_by_multiplier(losses, costs, limit, names)
    # Where the budget does not bind, nothing must be lost to rounded costs.
    if solver == "multiplier" or not multiplier:
        return freely
    whole, capacity = integer_costs(costs, limit, cells)
    return choose_options(losses, whole, capacity, names)
