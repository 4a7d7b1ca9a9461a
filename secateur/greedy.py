"""Training-free pruning in stages, depth before width: what hurts least goes first, by measuring every candidate.

    stages = [Stage(is_block, 0.10 * whole), Stage(is_channel, 0.21 * whole, chunk=64), Stage(is_head, 0.22 * whole)]
    small, steps = prune_greedily(network, stages, perplexity)

Forward passes only; each step runs the measure once a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.allocation import unit_costs
from secateur.importance.magnitude import Magnitude
from secateur.importance.objective import mask_of_ones
from secateur.maths import order_by_score
from secateur.units import Criterion, Keep, Prunable, Scores, UnitGroup


@dataclass(frozen=True)
class Stage:
    """One dimension of a network that is pruned until enough has gone.

    Args:
        belongs: whether a group belongs to the dimension: blocks, hidden channels, heads.
        removed: cost that is gone when the stage is over, counted from the start of the first stage; what an earlier
            stage took too much counts.
        cost: name of the cost in `UnitGroup.cost`, or "units".
        chunk: units of a group that go together in one step.
    """

    belongs: Callable[[UnitGroup], bool]
    removed: float
    cost: str = "params"
    chunk: int = 1

    def __post_init__(self) -> None:
        if self.removed < 0 or self.chunk < 1:
            raise ValueError(f"removed >= 0 and chunk >= 1 are needed, got {self.removed} and {self.chunk}")


@dataclass(frozen=True, eq=False)
class Step:
    """What one step removed.

    Args:
        stage: number of the stage, from 0.
        group: name of the group.
        units: (removed,) indices of its units, in the group as it was at the start of the stage.
        measured: the measure without them, the least of all candidates'.
    """

    stage: int
    group: str
    units: Tensor
    measured: float


def prune_greedily(
    target: Prunable,
    stages: Sequence[Stage],
    measure: Callable[[Any], float],
    criterion: Criterion | None = None,
    calibration: Any = None,
) -> tuple[Any, list[Step]]:
    """Stage by stage, remove again and again the units without which the measure is least.

    MultiPruner (Munoz et al. 2025, arXiv 2501.09949), which extends BlockPruner (Zhong et al. 2024, arXiv 2406.10594):
    first residual blocks (attention or feed-forward, one a step, the one whose removal raises the perplexity least),
    then hidden channels of the feed-forward blocks, then attention heads. In the width stages each group offers its
    `chunk` least important units, by magnitude. A stage that has nothing to remove changes nothing, so stages of blocks
    alone are BlockPruner. In the released code the three stages take 44, 52 and 4 % of what goes (Llama-2-7B), and
    chunks are 1,024 channels and one head.

    Units of one stage should not hold one another: their costs are added. After each stage the target is cut, so that
    what lies in a removed block is no candidate any more, and costs are those of what is left.

    Args:
        target: what is pruned; it is left as it is.
        stages: in their order.
        measure: target, under masks -> what is to stay low (loss, perplexity), deterministic; called without gradients.
        criterion: the order of the units within a group; None: magnitude.
        calibration: what the criterion looks through.

    Returns:
        The smaller target, and the steps that led to it. What a stage removes too much is less than one unit.

    Raises:
        ValueError: a stage has no groups, or their floors keep it from removing enough.
    """
    steps: list[Step] = []
    removed = 0.0
    for number, stage in enumerate(stages):
        groups = [group for group in target.groups() if stage.belongs(group)]
        if removed >= stage.removed:
            continue
        if not groups:
            raise ValueError(f"stage {number} has no groups; there are {[group.name for group in target.groups()]}")
        scores = (criterion or Magnitude()).score(target, calibration)
        search = _Search(target, groups, scores, stage)
        while removed < stage.removed:
            step, cost = search.step(number, measure, stage.removed - removed)
            steps.append(step)
            removed += cost
        target = target.cut(search.keep)
    return target, steps


class _Search:
    """One stage: what is left of each group, and which of its units would go next."""

    def __init__(self, target: Prunable, groups: Sequence[UnitGroup], scores: Scores, stage: Stage) -> None:
        self.target, self.groups, self.chunk = target, groups, stage.chunk
        self.costs = {group.name: unit_costs(group, stage.cost) for group in groups}
        self.going = {group.name: order_by_score(scores[group.name].detach().cpu()).flip(0) for group in groups}
        self.ones = {name: mask.detach() for name, mask in mask_of_ones(target).items()}
        self.keep: Keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}

    @torch.no_grad()
    def step(self, number: int, measure: Callable[[Any], float], missing: float) -> tuple[Step, float]:
        """Remove the candidate that hurts least; what it was, and its cost."""
        best: Step | None = None
        for group in self.groups:
            left = self.going[group.name]
            units = left[: min(self.chunk, len(left) - min(group.min_keep, group.size))]
            spent = self.costs[group.name][units].cumsum(0)
            if not len(units) or not float(spent[-1]):
                continue
            units = units[: int((spent < missing).sum()) + 1]
            measured = self._measured(group.name, units, measure)
            if best is None or measured < best.measured:
                best = Step(number, group.name, units, measured)
        if best is None:
            floors = {group.name: group.min_keep for group in self.groups}
            raise ValueError(f"stage {number} has to remove {missing:g} more, but its floors {floors} are reached")
        self.going[best.group] = self.going[best.group][len(best.units) :]
        self.keep[best.group][best.units] = False
        return best, float(self.costs[best.group][best.units].sum())

    def _measured(self, name: str, units: Tensor, measure: Callable[[Any], float]) -> float:
        masks = {group: one * self.keep[group].to(one) for group, one in self.ones.items()}
        masks[name] = masks[name].index_fill(0, units.to(masks[name].device), 0)
        with self.target.masked(masks):
            return measure(self.target)
