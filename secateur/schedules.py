"""How much, when: pure functions of progress, and the drivers that prune in rounds.

A schedule maps the progress of pruning, 0 to 1, to the share of the way from dense to the final budget that is gone: 0
at the start (but for `OneShot`), 1 at the end, never falling. `secateur.pruning_callback` follows one during training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from secateur.allocation import Allocator, Budget, allocate
from secateur.granularity import Granularity, ParamsFilter, Unstructured, Weights, matrices
from secateur.maths import topk_mask
from secateur.units import Criterion, Keep, Prunable, Scores, UnitGroup


class Schedule(Protocol):
    """Progress in [0, 1] -> share of the pruning that is done, in [0, 1]."""

    def __call__(self, progress: float, /) -> float: ...


@dataclass(frozen=True)
class OneShot:
    """Nothing, and then all of it once `at` is reached."""

    at: float = 0.0

    def __call__(self, progress: float, /) -> float:
        return 1.0 if progress >= self.at else 0.0


@dataclass(frozen=True)
class Polynomial:
    """1 - (1 - t)^power.

    Zhu and Gupta (To Prune, or Not to Prune, arXiv 1710.01878, eq. 1) take the third power: s_t = s_f + (s_i - s_f) (1
    - t)^3, fast while much is redundant. Power 1 is linear.
    """

    power: float = 3.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"power must be above 0, got {self.power}")

    def __call__(self, progress: float, /) -> float:
        return 1.0 - (1.0 - _clamped(progress)) ** self.power


@dataclass(frozen=True)
class Linear:
    """t."""

    def __call__(self, progress: float, /) -> float:
        return _clamped(progress)


@dataclass(frozen=True)
class Cosine:
    """(1 - cos(pi t)) / 2: slow at both ends."""

    def __call__(self, progress: float, /) -> float:
        return 0.5 * (1.0 - math.cos(math.pi * _clamped(progress)))


@dataclass(frozen=True)
class Staircase:
    """`rounds` equal steps of another schedule, at equal distances, the first of them at the start."""

    rounds: int
    inner: Schedule = Linear()

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")

    def __call__(self, progress: float, /) -> float:
        reached = min(self.rounds, math.floor(_clamped(progress) * self.rounds * (1 + 1e-12)) + 1)
        return self.inner(reached / self.rounds)


def budget_at(schedule: Schedule, progress: float, budget: Budget, groups: Sequence[UnitGroup]) -> Budget:
    """The budget on the way from everything to `budget`, at a progress in [0, 1]; `budget` itself at the end."""
    done = schedule(progress)
    if done >= 1:
        return budget
    if budget.share is not None:
        return Budget(share=1.0 + (budget.share - 1.0) * done, cost=budget.cost)
    whole = Budget(share=1.0, cost=budget.cost).amount(groups)
    return Budget(limit=whole + (min(budget.amount(groups), whole) - whole) * done, cost=budget.cost)


def grow_prune(
    keep: Bool[Tensor, " n"], scores: Float[Tensor, " n"], growth: Float[Tensor, " n"], fraction: float
) -> Bool[Tensor, " n"]:
    """Exchange a fraction of the kept units: the worst of them for the best others. Their number stays.

    RigL's update of a mask (Evci et al. 2020, arXiv 1911.11134, section 3), and GraNet's after each pruning (Liu et al.
    2021, arXiv 2106.10404, section 4): scores are magnitudes, growth the gradients' absolute values. What was dropped
    may come back at once, if its growth is among the largest.

    Args:
        keep: (n,) which units are kept.
        scores: (n,) what they are worth.
        growth: (n,) what units that are not kept promise.
        fraction: of the kept ones, 0 to 1, rounded down.

    Raises:
        ValueError: the fraction is out of range, or scores are NaN.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    kept = int(keep.sum())
    exchanged = min(int(fraction * kept), len(keep) - kept)
    if not exchanged:
        return keep.clone()
    stays = topk_mask(scores.masked_fill(~keep, -torch.inf), kept - exchanged)
    return stays | topk_mask(growth.masked_fill(stays, -torch.inf), exchanged)


@dataclass(frozen=True)
class Round:
    """One round of `iterative_pruning`.

    Args:
        number: from 0: the dense training.
        keep: which weights there are.
        endpoint: the module's state after the round's training.
    """

    number: int
    keep: Keep
    endpoint: Mapping[str, Any]


Train = Callable[[Weights, Keep, int, int], None]
"""(target, keep, first step, last step): trains `target.module` in place over those steps, with removed weights at
0."""


def iterative_pruning(
    module: nn.Module,
    train: Train,
    criterion: Criterion,
    *,
    steps: int,
    rounds: int,
    prune_share: float = 0.2,
    rewind_to: int = 0,
    calibration: Any = None,
    granularity: Granularity | None = None,
    params: ParamsFilter = matrices,
    min_keep: int = 1,
) -> Iterator[Round]:
    """Train, prune, rewind what is left, again: the module ends each round trained, with the round's weights only.

    The lottery ticket hypothesis (Frankle and Carbin 2019, arXiv 1803.03635) rewinds to step 0, and stabilised tickets
    (Frankle et al. 2019, arXiv 1903.01611) to a later one; everything in the `state_dict` is put back, bit for bit.
    With `rewind_to=steps` nothing is rewound and nothing trained again. After round r a share of (1 - prune_share)^r is
    kept; masks are nested. What is removed is left to `train` to hold at 0: `PruningCallback.fixed(keep)` does it.

    Args:
        module: is trained in place.
        train: called for steps 0 to `rewind_to` once, and from there to `steps` each round.
        criterion: scores the trained weights.
        steps: length of one training.
        rounds: how often to prune.
        prune_share: of the weights that are left, removed each round (0.2 in the paper's smaller networks).
        rewind_to: step, 0 to `steps`.
        calibration: what the criterion looks through.
        granularity: what a unit is; None: single weights.
        params: which parameters are pruned.
        min_keep: the fewest units of each parameter.

    Yields:
        Rounds 0 to `rounds`. The next one starts when it is asked for.

    Raises:
        ValueError: an argument is out of range.
    """
    from secateur.training.weights import restore, snapshot  # with it comes Lightning, which is slow to import

    if not 0 <= rewind_to <= steps or rounds < 0 or not 0 <= prune_share < 1:
        raise ValueError(
            f"0 <= rewind_to <= steps, rounds >= 0 and 0 <= prune_share < 1 are needed, got {rewind_to}, {steps}, "
            f"{rounds} and {prune_share}"
        )
    target = Weights(module, granularity or Unstructured(), params, min_keep)
    keep = {name: torch.ones_like(s, dtype=torch.bool) for name, s in _everything(target).items()}
    if rewind_to:
        train(target, keep, 0, rewind_to)
    start = snapshot(module)
    for number in range(rounds + 1):
        if number:
            scores = without(criterion.score(target, calibration), keep)
            budget = Budget(share=(1 - prune_share) ** number)
            keep = target.granularity.allocate(scores, target.groups(), budget)
            restore(module, start)
            target.write_zeros(keep)
        if rewind_to < steps:
            train(target, keep, rewind_to, steps)
        yield Round(number, keep, snapshot(module))


def without(scores: Scores, keep: Keep) -> Scores:
    """The scores, and -inf for units that are gone, so that masks are nested."""
    return {name: score.masked_fill(~keep[name].to(score.device), -torch.inf) for name, score in scores.items()}


def stability(first: Mapping[str, Any], second: Mapping[str, Any], keep: Mapping[str, Tensor] | None = None) -> float:
    """The Euclidean distance of two states, over the entries that `keep` holds.

    The stability of Frankle et al. 2019 (arXiv 1903.01611, section 3): between a ticket's endpoint and the full
    network's (to pruning), or of two runs that saw the data in another order (to data order). The smaller, the more
    stable.

    Args:
        first, second: states of one architecture; entries that are not floating-point are passed over.
        keep: parameter name -> which of its flattened entries count; parameters that it lacks count as a whole.
    """
    total = 0.0
    for name, value in first.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            difference = (value.double() - second[name].double()).flatten()
            mask = None if keep is None else keep.get(name)
            total += float((difference if mask is None else difference[mask.flatten()]).square().sum())
    return math.sqrt(total)


Dimension = Callable[[UnitGroup], bool]
"""Whether a group belongs to a dimension of the network: its embedding, its heads, its hidden channels."""


def alternate_dimensions(
    target: Prunable,
    criterion: Criterion,
    budget: Budget,
    dimensions: Sequence[Dimension],
    recover: Callable[[Any, int], Any],
    *,
    rounds: int = 1,
    schedule: Schedule | None = None,
    calibration: Any = None,
    allocator: Allocator = allocate,
) -> Iterator[Any]:
    """Prune one dimension of a network at a time, and let it recover before the next.

    SlimSAM's alternate slimming (Chen et al. 2024, arXiv 2312.05284, section 3.2) prunes the embedding first and then
    the bottlenecks, each followed by distillation. Each dimension is brought to the budget by itself.

    Args:
        target: what is pruned.
        criterion: scores what is left, before each cut.
        budget: the share of each dimension that stays in the end, of what there is at the start.
        dimensions: which groups belong to each; the others are left alone.
        recover: (cut target, number of the phase) -> recovered target.
        rounds: how often to go through all dimensions.
        schedule: how much is gone after each round; None: linear.
        calibration: what the criterion looks through.
        allocator: chooses within a dimension.

    Yields:
        The recovered target of each phase: rounds x dimensions.

    Raises:
        ValueError: the budget is no share, or a dimension has no groups.
    """
    if budget.share is None:
        raise ValueError("alternating dimensions needs a budget that is a share: it holds for each of them")
    limits = []
    for number, belongs in enumerate(dimensions):
        groups = [group for group in target.groups() if belongs(group)]
        if not groups:
            raise ValueError(f"dimension {number} has no groups; there are {[g.name for g in target.groups()]}")
        limits.append(Budget(share=1.0, cost=budget.cost).amount(groups))
    follow = schedule or Linear()
    for turn in range(rounds):
        left = budget_at(follow, (turn + 1) / rounds, budget, target.groups()).share
        for number, belongs in enumerate(dimensions):
            groups = [group for group in target.groups() if belongs(group)]
            scores = criterion.score(target, calibration)
            chosen = allocator(scores, groups, Budget(limit=left * limits[number], cost=budget.cost))  # type: ignore[operator]
            keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()} | chosen
            target = recover(target.cut(keep), turn * len(dimensions) + number)
            yield target


def _clamped(progress: float) -> float:
    return min(max(progress, 0.0), 1.0)


def _everything(target: Weights) -> Scores:
    tensors = target.tensors()
    return {g.name: torch.ones(g.size, device=tensors[g.members[0].param].device) for g in target.groups()}
