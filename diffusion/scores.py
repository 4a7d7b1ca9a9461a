"""LD-Pruner: what is each operator or block worth? How far the set of generated latents moves when it is gone.

Castells et al. 2024, LD-Pruner: Efficient Pruning of Latent Diffusion Models using Task-Agnostic Insights (arXiv
2404.11936). Latents are generated with the same seeds with and without the unit, and their mean and their standard
deviation over the set are compared, element by element. No decoder, no gradient, no label is needed.

Units are independent of one another in the paper; `diffusion.greedy_shift` scores again after every removal instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.shift_record import ShiftRecord
from secateur.console import Report, silent
from secateur.importance.perturbation import measure_removals, output_shifts
from secateur.units import Prunable, Scores, UnitGroup


class LatentSource(Protocol):
    """Generates the final latents of a set of seeds: a pipeline, or a loop over a scheduler.

    With `diffusion.trajectory.Trajectories`, seeds are indices: `lambda network, seeds: trajectories.sample(
    network.module, torch.tensor(seeds))`.
    """

    def __call__(self, target: Any, seeds: Sequence[int], /) -> Float[Tensor, "seeds ..."]:
        """Latents (seeds, ...) of `target`; the same seed (and its prompt) always starts from the same noise."""
        ...


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
    def latents(self, target: Any) -> Float[Tensor, "seeds ..."]:
        """Generate all latents, float32.

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
        return torch.cat(parts)

    def shift_from(self, target: Any) -> Callable[[Any], float]:
        """Network -> how far its latents are from those of `target`: a measure for `secateur.greedy.prune_greedily`.

        LD-Pruner takes operators for independent of one another. With this, all that is left is scored again after
        each removal, so that two operators that stand in for each other do not both go.

        Raises:
            ValueError: the latents of `target` are not finite.
        """
        dense = finite_latents(self.latents(target))
        return lambda each: total_shift(*output_shifts(dense, self.latents(each)))


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
        record: JSON file that both norms of each unit are written to as soon as they are known; a run that was killed
            goes on from there. None: nowhere.
        report: told the share done and the unit, such as `secateur.console.progress_bar` gives.
    """

    record: Path | None = None
    report: Report = field(default=silent, repr=False, compare=False)

    def score(self, target: Prunable, calibration: LatentSet | None = None) -> Scores:
        """(size,) scores of each group; infinite for a unit without which the latents are not finite.

        Raises:
            ValueError: there is no calibration, the whole model's latents are not finite, or the record is of another
                model or calibration.
        """
        if calibration is None:
            raise ValueError("LatentShift needs a LatentSet as its calibration, got None")
        return {name: shifts.total for name, shifts in self.shifts(target, calibration).items()}

    def shifts(self, target: Prunable, calibration: LatentSet) -> dict[str, Shifts]:
        """Both norms of each unit of each group. Errors as for `score`."""
        dense = finite_latents(calibration.latents(target))
        sizes = {group.name: group.size for group in target.groups()}
        units = [f"{name} [{unit}]" for name, size in sizes.items() for unit in range(size)]
        record = ShiftRecord.open(self.record, dense, units)
        order = iter(units)

        def measure(each: Any) -> float:
            unit = next(order)
            if unit not in record.norms:
                self.report(len(record.norms) / len(units), unit)
                record.add(unit, output_shifts(dense, calibration.latents(each)))
            return total_shift(*record.norms[unit])

        measure_removals(target, measure)
        norms = torch.tensor([record.norms[unit] for unit in units], dtype=torch.float64)
        parts = norms.reshape(-1, 2).split(list(sizes.values()))
        self.report(1.0, "latent shift")
        return {name: Shifts(*part.T) for name, part in zip(sizes, parts, strict=True)}

    def floor(self, target: Prunable, calibration: LatentSet, seeds: Sequence[int]) -> tuple[float, float]:
        """Both norms between the whole model's latents of the calibration's seeds, and of as many other seeds.

        Raises:
            ValueError: there are not as many seeds, or they are not other ones.
        """
        if len(seeds) != len(calibration.seeds) or set(seeds) & set(calibration.seeds):
            raise ValueError(f"the floor needs {len(calibration.seeds)} seeds that are not the calibration's")
        others = LatentSet(calibration.sample, tuple(seeds), calibration.batch_size)
        return output_shifts(finite_latents(calibration.latents(target)), finite_latents(others.latents(target)))

    def generations(self, groups: Sequence[UnitGroup], calibration: LatentSet) -> int:
        """Calls of the sampler that `score` makes; each runs the denoiser once a step."""
        batches = -(-len(calibration.seeds) // calibration.batch_size)
        return (1 + sum(group.size for group in groups)) * batches


def total_shift(mean: float, std: float) -> float:
    """Both norms together; what is not finite is as far away as can be."""
    return mean + std if isfinite(mean + std) else inf


def finite_latents(latents: Tensor) -> Tensor:
    """The latents of the whole model, or ValueError where some are not finite."""
    wrong = latents.numel() - int(torch.isfinite(latents).sum())
    if wrong:
        raise ValueError(f"{wrong} of {latents.numel()} values of the whole model's latents are not finite")
    return latents
