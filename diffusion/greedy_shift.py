"""LD-Pruner with re-scoring: what moves the latents least goes, and all that is left is scored again without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from diffusion.scores import LatentSet, finite_latents, total_shift
from diffusion.shift_record import ShiftRecord
from secateur.console import Report, silent
from secateur.importance.objective import mask_of_ones
from secateur.importance.perturbation import output_shifts
from secateur.surgery.network import Network
from secateur.surgery.stand_in import gone_with
from secateur.units import Keep, Scores


@dataclass(frozen=True)
class GreedyLatentShift:
    """The order in which units go when each removal is the one that moves the latents least, given those before it.

    LD-Pruner (Castells et al. 2024, arXiv 2404.11936) takes operators for independent of one another, so that of two
    which stand in for each other both go. This scores again after every removal, which costs as many times more: a
    generation of all latents for each unit that is left, each time.

    Args:
        enough: which units are left -> whether no more has to go; what is left then keeps the order of the last
            scoring. None: all go that may. In a recipe, its budget says.
        record: JSON file that each measurement is written to; a run that was killed goes on from there. None: nowhere.
        report: told the share of the units that have gone, and the unit.
    """

    enough: Callable[[Keep], bool] | None = field(default=None, repr=False, compare=False)
    record: Path | None = field(default=None, repr=False, compare=False)
    report: Report = field(default=silent, repr=False, compare=False)

    def score(self, target: Network, calibration: LatentSet | None = None) -> Scores:
        """(size,) ranks of each group over all units, 0 for the one that goes first.

        Raises:
            ValueError: there is no calibration, the whole model's latents are not finite, or the record is of another
                model or calibration.
        """
        if calibration is None:
            raise ValueError("GreedyLatentShift needs a LatentSet as its calibration, got None")
        search = _Search(target, calibration, self.record, self.report)
        while search.candidates() and not (self.enough is not None and self.enough(search.keep)):
            search.remove()
        return search.ranks()


class _Search:
    """What has gone, in which order, and what the last scoring said of the rest."""

    def __init__(self, target: Network, calibration: LatentSet, record: Path | None, report: Report) -> None:
        self.target, self.calibration, self.report = target, calibration, report
        self.dense = finite_latents(calibration.latents(target))
        self.record = ShiftRecord.open(record, self.dense)
        self.ones = {name: mask.detach() for name, mask in mask_of_ones(target).items()}
        self.keep: Keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}
        self.gone: list[tuple[str, int]] = []
        self.last = {name: torch.zeros(len(mask), dtype=torch.float64) for name, mask in self.keep.items()}

    def candidates(self) -> list[tuple[str, int]]:
        """(group, unit) of all that may go."""
        return [
            (group.name, unit)
            for group in self.target.groups()
            if int(self.keep[group.name].sum()) > min(group.min_keep, group.size)
            for unit in self.keep[group.name].nonzero()[:, 0].tolist()
        ]

    def remove(self) -> None:
        """Score the candidates, and let the least go with all that lies in it."""
        shifts = {each: self._shift(*each) for each in self.candidates()}
        for (name, unit), shift in shifts.items():
            self.last[name][unit] = shift
        least = min(shifts, key=lambda each: shifts[each])
        self._drop(*least)
        blocks = self.target.blocks
        left = {least[0]: blocks[least[0]][least[1]]} if least[0] in blocks else {}
        for name, unit in self.candidates():
            if name in blocks and gone_with(blocks[name][unit].module, left):
                self._drop(name, unit)

    def _drop(self, name: str, unit: int) -> None:
        self.keep[name][unit] = False
        self.gone.append((name, unit))

    @torch.no_grad()
    def _shift(self, name: str, unit: int) -> float:
        key = f"{name} [{unit}] after {len(self.gone)}"
        if key not in self.record.norms:
            self.report(len(self.gone) / sum(map(len, self.keep.values())), key)
            masks = {group: one * self.keep[group].to(one) for group, one in self.ones.items()}
            masks[name] = masks[name].index_fill(0, torch.tensor([unit], device=masks[name].device), 0)
            with self.target.masked(masks):
                self.record.add(key, output_shifts(self.dense, self.calibration.latents(self.target)))
        return total_shift(*self.record.norms[key])

    def ranks(self) -> Scores:
        """Those that have gone in their order, then the rest by the last scoring."""
        names = list(self.keep)
        kept = torch.cat([self.keep[name] for name in names])
        last = torch.cat([self.last[name] for name in names])
        order = last.argsort(stable=True)
        order = order[kept[order]]
        ranks = torch.empty(len(last), dtype=torch.float64)
        ranks[order] = torch.arange(len(self.gone), len(last), dtype=torch.float64)
        found: dict[str, Tensor] = dict(zip(names, ranks.split([len(self.keep[name]) for name in names]), strict=True))
        for place, (name, unit) in enumerate(self.gone):
            found[name][unit] = place
        return found
