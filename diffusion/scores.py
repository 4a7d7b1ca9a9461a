"""LD-Pruner: what is each operator or block worth? How far the set of generated latents moves when it is gone.

Castells et al. 2024, LD-Pruner: Efficient Pruning of Latent Diffusion Models using Task-Agnostic Insights (arXiv
2404.11936). Latents are generated with the same seeds with and without the unit, and their mean and their standard
deviation over the set are compared, element by element. No decoder, no gradient, no label is needed.

Units are independent of one another in the paper; `remove_greedily` scores again after every removal instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.allocation import Budget, unit_costs
from secateur.console import Report, silent
from secateur.importance.objective import mask_of_ones
from secateur.units import Keep, Prunable, Scores, UnitGroup

_log = logging.getLogger(__name__)


class LatentSource(Protocol):
    """Generates the final latents of a set of seeds: a pipeline, or a loop over a scheduler.

    With `diffusion.trajectory.Trajectories`, seeds are indices: `lambda network, seeds: trajectories.sample(
    network.module, torch.tensor(seeds))`.
    """

    def __call__(self, target: Any, seeds: Sequence[int], /) -> Float[Tensor, "seeds ..."]:
        """Latents (seeds, ...) of `target`; the same seed (and its prompt) always starts from the same noise."""
        ...


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """Mean and standard deviation over a set of latents, element by element, float64.

    Args:
        mean: shaped like one latent.
        std: likewise, with n - 1 in the denominator.
    """

    mean: Tensor
    std: Tensor

    def shift(self, other: LatentStatistics) -> tuple[float, float]:
        """Euclidean norms of the differences of the means and of the standard deviations."""
        return float((self.mean - other.mean).norm()), float((self.std - other.std).norm())


@dataclass(frozen=True)
class LatentSet:
    """Which latents are compared: the calibration of `LatentShift`.

    Args:
        sample: generates them.
        seeds: of the noise; at least 2. A mean and a deviation over few latents are noisy: 64 or more tell operators
            apart, as `LatentShift.floor` measures.
        batch_size: how many seeds go into one call of `sample`.

    Raises:
        ValueError: fewer than two seeds, seeds that repeat, or no batch size.
    """

    sample: LatentSource
    seeds: tuple[int, ...] = tuple(range(64))
    batch_size: int = 16

    def __post_init__(self) -> None:
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 2:
            raise ValueError(f"a set of latents needs at least 2 different seeds, got {self.seeds}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @torch.no_grad()
    def statistics(self, target: Any) -> LatentStatistics:
        """Generate all latents and measure their spread.

        Raises:
            ValueError: `sample` gives another number of latents than it was given seeds.
        """
        parts = []
        for start in range(0, len(self.seeds), self.batch_size):
            seeds = self.seeds[start : start + self.batch_size]
            latents = self.sample(target, seeds)
            if len(latents) != len(seeds):
                raise ValueError(f"sample gave {len(latents)} latents for {len(seeds)} seeds")
            parts.append(latents.float())
        latents = torch.cat(parts).double()
        return LatentStatistics(latents.mean(dim=0), latents.std(dim=0))


@dataclass(frozen=True, slots=True)
class Shifts:
    """How far the latents move without each unit of a group: both norms, which differ in size.

    Args:
        mean: (size,) float64 norms of the shift of the mean.
        std: (size,) float64 norms of the shift of the standard deviation.
    """

    mean: Float[Tensor, " size"]
    std: Float[Tensor, " size"]

    @property
    def total(self) -> Float[Tensor, " size"]:
        """The score of LD-Pruner: the sum of both; infinite where the latents are not finite without the unit."""
        return (self.mean + self.std).nan_to_num(nan=torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class LatentShift:
    """Norm of the shift of the latents' mean + that of their standard deviation, where the unit is gone (LD-Pruner).

    Castells et al. 2024 (arXiv 2404.11936). Any unit can be scored that a mask can hide: single operators, whole
    blocks, heads. Each costs one generation of all latents: `generations` counts the calls of the sampler.

    A score below `floor` tells nothing: that much two sets of latents of the whole model differ.

    Args:
        report: told the share done and the unit, such as `secateur.console.progress_bar` gives.
    """

    report: Report = field(default=silent, repr=False, compare=False)

    def score(self, target: Prunable, calibration: LatentSet | None = None) -> Scores:
        """(size,) scores of each group; infinite for a unit without which the latents are not finite.

        Raises:
            ValueError: there is no calibration, or the whole model's latents are not finite.
        """
        if calibration is None:
            raise ValueError("LatentShift needs a LatentSet as its calibration, got None")
        return {name: shifts.total for name, shifts in self.shifts(target, calibration).items()}

    def shifts(self, target: Prunable, calibration: LatentSet) -> dict[str, Shifts]:
        """Both norms of each unit of each group. Errors as for `score`."""
        dense = _finite(calibration.statistics(target))
        groups = target.groups()
        found = {group.name: Shifts(*torch.zeros(2, group.size, dtype=torch.float64)) for group in groups}
        whole = {name: mask.detach() for name, mask in mask_of_ones(target).items()}
        everything = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
        units = list(_units(groups, everything))
        for number, (name, unit) in enumerate(units):
            self.report(number / len(units), f"{name} [{unit}]")
            mean, std = dense.shift(_without(target, calibration, whole, name, unit))
            found[name].mean[unit], found[name].std[unit] = mean, std
            _log.info("%s [%d]: mean shift %.6g, deviation shift %.6g", name, unit, mean, std)
        self.report(1.0, "latent shift")
        return found

    def floor(self, target: Prunable, calibration: LatentSet, seeds: Sequence[int]) -> tuple[float, float]:
        """Both norms between the whole model's latents of the calibration's seeds, and of as many other seeds.

        Raises:
            ValueError: there are not as many seeds, or they are not other ones.
        """
        if len(seeds) != len(calibration.seeds) or set(seeds) & set(calibration.seeds):
            raise ValueError(f"the floor needs {len(calibration.seeds)} seeds that are not the calibration's")
        others = LatentSet(calibration.sample, tuple(seeds), calibration.batch_size)
        return _finite(calibration.statistics(target)).shift(_finite(others.statistics(target)))

    def generations(self, groups: Sequence[UnitGroup], calibration: LatentSet) -> int:
        """Calls of the sampler that `score` makes; each runs the denoiser once a step."""
        batches = -(-len(calibration.seeds) // calibration.batch_size)
        return (1 + sum(group.size for group in groups)) * batches


@dataclass(frozen=True, slots=True)
class Removal:
    """A unit that greedy removal took.

    Args:
        group: name of its group.
        unit: its index there.
        mean: norm of the shift of the latents' mean against the whole model, with all that went before gone too.
        std: likewise of their standard deviation.
    """

    group: str
    unit: int
    mean: float
    std: float


def remove_greedily(
    target: Prunable, calibration: LatentSet, budget: Budget, report: Report = silent
) -> tuple[Keep, list[Removal]]:
    """Take away the unit whose loss, on top of those before, shifts the latents least, until the budget holds.

    After every removal all that is left is scored again, so that two operators that stand in for each other do not both
    go; that takes a generation of all latents for each pair of a removal and a unit that is left. Each group keeps its
    `min_keep`. At last, units that still fit are put back, the last taken first.

    Returns:
        Which units stay, and the removals in their order.

    Raises:
        ValueError: the floors of the groups exceed the budget, or the whole model's latents are not finite.
    """
    groups = target.groups()
    costs = {group.name: unit_costs(group, budget.cost) for group in groups}
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    amount, total = budget.amount(groups), _spent(costs, keep)
    dense = _finite(calibration.statistics(target))
    removals: list[Removal] = []
    while (spent := _spent(costs, keep)) > amount * (1 + 1e-9):
        report((total - spent) / (total - amount), f"{len(removals)} removed")
        free = {g.name: keep[g.name] & (int(keep[g.name].sum()) > min(g.min_keep, g.size)) for g in groups}
        best = _cheapest(target, calibration, dense, keep, list(_units(groups, free)))
        if best is None:
            raise ValueError(f"the groups' floors cost {spent:g}, more than the budget of {amount:g} {budget.cost}")
        keep[best.group][best.unit] = False
        removals.append(best)
    for removal in reversed(removals):
        if _spent(costs, keep) + float(costs[removal.group][removal.unit]) <= amount * (1 + 1e-9):
            keep[removal.group][removal.unit] = True
    report(1.0, f"{len(removals)} removed")
    return keep, [removal for removal in removals if not keep[removal.group][removal.unit]]


def _cheapest(
    target: Prunable, calibration: LatentSet, dense: LatentStatistics, keep: Keep, units: Sequence[tuple[str, int]]
) -> Removal | None:
    """The unit without which, and without all that is gone, the latents are nearest to the whole model's."""
    best: Removal | None = None
    least = torch.inf
    masks = {name: mask * keep[name].to(mask) for name, mask in mask_of_ones(target).items()}
    masks = {name: mask.detach() for name, mask in masks.items()}
    for name, unit in units:
        mean, std = dense.shift(_without(target, calibration, masks, name, unit))
        total = mean + std if mean + std == mean + std else torch.inf
        if best is None or total < least:
            best, least = Removal(name, unit, mean, std), total
    return best


def _without(
    target: Prunable, calibration: LatentSet, masks: Mapping[str, Tensor], name: str, unit: int
) -> LatentStatistics:
    """Statistics of the latents where one unit more is hidden than `masks` hide."""
    hidden = masks[name].clone()
    hidden[unit] = 0
    with target.masked({**masks, name: hidden}):
        return calibration.statistics(target)


def _units(groups: Sequence[UnitGroup], free: Keep) -> Iterator[tuple[str, int]]:
    for group in groups:
        for unit in free[group.name].nonzero()[:, 0].tolist():
            yield group.name, unit


def _spent(costs: Mapping[str, Tensor], keep: Keep) -> float:
    return sum(float(cost[keep[name]].sum()) for name, cost in costs.items())


def _finite(statistics: LatentStatistics) -> LatentStatistics:
    wrong = int((~torch.isfinite(statistics.mean)).sum())
    if wrong:
        raise ValueError(f"{wrong} of {statistics.mean.numel()} values of the whole model's latents are not finite")
    return statistics
