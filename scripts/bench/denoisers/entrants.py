"""The criteria that compete, each with what it looks at, and how their scores become smaller models."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from meters import peak_bytes_above

from denoisers.settings import Settings
from denoisers.subjects import Subject, subject
from diffusion.masks import EcoDiff, ExpectedBudget
from diffusion.repair import repair
from diffusion.taylor import DiffPruning, InformativeSteps
from diffusion.units import Kind
from secateur.allocation import Budget, allocate, unit_costs
from secateur.importance import Magnitude, Random, Taylor, Wanda
from secateur.surgery import Network
from secateur.units import Keep, Scores

Score = Callable[[Subject, Settings, int], Scores]
"""(model, settings, seed) -> scores."""

GATES_AT = 0.3
"""Share of the multiply-adds that EcoDiff's gates are fitted to lose; all other shares take the same ranking."""


def _ecodiff(of: Subject, settings: Settings, seed: int) -> Scores:
    pressure = ExpectedBudget(1 - GATES_AT / prunable_share(of.units), "macs")
    criterion = EcoDiff(pressure, steps=settings.ecodiff_steps, batch_size=8, seed=seed)
    return criterion.score(of.units, of.trajectories(seed, settings.trajectories, settings.steps(of)))


def _losses(of: Subject, settings: Settings, seed: int, threshold: float = 0.0) -> InformativeSteps:
    return of.losses(seed, settings.pictures, settings.timesteps, threshold)


ENTRANTS: dict[str, Score] = {
    "random": lambda of, settings, seed: Random(seed).score(of.units),
    "magnitude": lambda of, settings, seed: Magnitude(2.0).score(of.units),
    "Wanda": lambda of, settings, seed: Wanda().score(of.units, _losses(of, settings, seed)),
    "Taylor": lambda of, settings, seed: Taylor().score(of.units, _losses(of, settings, seed)),
    "Diff-Pruning": lambda of, settings, seed: DiffPruning().score(of.units, _losses(of, settings, seed, 0.05)),
    "EcoDiff": _ecodiff,
}


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores, and what they cost.

    Args:
        scores: see `Scores`.
        seconds: of wall clock.
        cpu_seconds: of the processor, which other work on the machine does not lengthen.
        peak_bytes: what the process took above what it had.
    """

    scores: Scores
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None


@lru_cache(maxsize=64)
def scored(name: str, method: str, settings: Settings, seed: int) -> Scored:
    """The scores of a method, made once in a run."""
    found: list[Scores] = []
    of = subject(name)
    start, cpu = time.perf_counter(), time.process_time()
    peak = peak_bytes_above(lambda: found.append(ENTRANTS[method](of, settings, seed)))
    return Scored(found[0], time.perf_counter() - start, time.process_time() - cpu, peak)


def small(name: str, method: str, settings: Settings, remove: float, seed: int) -> tuple[Network, Scored]:
    """The cut model that has lost this share of the dense model's multiply-adds, each kind of unit the same share.

    Raises:
        ValueError: the units that may go have fewer, or their floors take more than is left.
    """
    of, found = subject(name), scored(name, method, settings, seed)
    return of.units.cut(kept_by_kind(of.units, of.kinds, found.scores, remove)), found


def kept_by_kind(network: Network, kinds: Sequence[Kind], scores: Scores, remove: float) -> Keep:
    """What stays where this share of the whole model's multiply-adds goes, each kind of unit losing the same share.

    Raises:
        ValueError: the units that may go have fewer, or their floors take more than is left.
    """
    share = 1 - remove / prunable_share(network)
    if share < 0:
        raise ValueError(f"{remove:.0%} of the multiply-adds cannot go: units have {prunable_share(network):.1%}")
    keep: Keep = {}
    for kind in kinds:
        groups = [group for group in network.groups() if group.name.rpartition(".")[2] == kind]
        keep |= allocate(scores, groups, Budget(share=share, cost="macs"))
    return keep


def repaired(name: str, pruned: Network, settings: Settings, seed: int) -> Network:
    """A copy of the pruned network after OBS repair."""
    of = subject(name)
    mended = copy.deepcopy(pruned)
    repair(mended, of.dense, of.trajectories(seed, settings.trajectories, settings.steps(of)), batch_size=64)
    return mended


def prunable_share(network: Network) -> float:
    """Of the model's multiply-adds, those of units that may go."""
    assert network.usage is not None
    return sum(float(unit_costs(group, "macs").sum()) for group in network.groups()) / network.usage.macs
