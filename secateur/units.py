"""The vocabulary that every domain shares: units, the groups they compete in, and the parameter rows they own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor

Scores = dict[str, Tensor]
"""Group name -> (size,) float: the higher, the more worth keeping."""

Keep = dict[str, Tensor]
"""Group name -> (size,) bool: True where the unit stays."""


@dataclass(frozen=True, slots=True)
class Member:
    """Rows of one parameter that each unit of a group owns along `dim`.

    Args:
        param: name of the parameter in `Prunable.tensors()`.
        dim: dimension of the parameter along which rows are owned.
        rows: (units, rows per unit) int64 row indices; None means that unit i owns row i.
    """

    param: str
    dim: int = 0
    rows: Tensor | None = None


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Units that compete with one another.

    Args:
        name: key of the group in `Scores` and `Keep`.
        size: number of units.
        members: the parameter rows that the units own.
        cost: per-unit costs by name ("params", "bytes", "macs", "ms"), each (size,).
        min_keep: the fewest units that may stay.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    cost: Mapping[str, Tensor] = field(default_factory=dict)
    min_keep: int = 1


class Prunable(Protocol):
    """Anything made of removable units: a splat scene, a hash grid, a UNet, a ViT."""

    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters by name, as `Member.param` refers to them."""
        ...

    def groups(self) -> Sequence[UnitGroup]:
        """The groups of units that compete with one another."""
        ...

    def masked(self, masks: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """While the context is open, unit i of group g acts with strength `masks[g][i]` in [0, 1], differentiably."""
        ...

    def cut(self, keep: Keep) -> Self:
        """A new, smaller, dense object that holds only the kept units."""
        ...


class Criterion(Protocol):
    """What is each unit worth? A dataclass with this one method."""

    def score(self, target: Any, calibration: Any = None, /) -> Scores:
        """Score every unit of every group of `target` ("higher is worth keeping"), without changing it.

        Args:
            target: the `Prunable` to score; a criterion of one domain asks for that domain's class.
            calibration: what the criterion looks through (cameras, prompts, images), or None where it needs nothing.
        """
        ...


def fold(elements: Mapping[str, Tensor], group: UnitGroup) -> Tensor:
    """Sum element scores over the parameter rows that each unit owns.

    Args:
        elements: parameter name -> scores shaped like the parameter; parameters that are absent count as zero.
        group: the units to score.

    Returns:
        (group.size,) unit scores.
    """
    total: Tensor | None = None
    for member in group.members:
        if member.param not in elements:
            continue
        units = _over_rows(elements[member.param], group, member)
        total = units if total is None else total + units
    if total is None:
        raise ValueError(f"no element scores for any parameter of group {group.name!r}")
    return total


class UnitSums:
    """`fold` of element scores that come one parameter at a time, and are let go.

    Args:
        groups: the units to score.
    """

    def __init__(self, groups: Sequence[UnitGroup]) -> None:
        self._groups = groups
        self._owners: dict[str, list[tuple[UnitGroup, Member]]] = {}
        for group in groups:
            for member in group.members:
                self._owners.setdefault(member.param, []).append((group, member))
        self._totals: Scores = {}

    def add(self, name: str, elements: Tensor) -> None:
        """The scores of one parameter's elements, or a share of them. They are given away: sums may take their place.

        Args:
            name: of the parameter.
            elements: shaped like it.
        """
        for group, member in self._owners.get(name, ()):
            units, total = _over_rows(elements, group, member), self._totals.get(group.name)
            if total is None:
                # One tensor must not become the sums of two groups.
                shared = units is elements and len(self._owners[name]) > 1
                self._totals[group.name] = units.clone() if shared else units
            elif torch.promote_types(total.dtype, units.dtype) == total.dtype:
                total.add_(units)
            else:
                self._totals[group.name] = total + units

    def take(self, partly: bool = False) -> Scores:
        """(size,) sums of each group since the last time.

        Args:
            partly: leave out groups that got none.

        Raises:
            ValueError: a group got none.
        """
        return {group.name: self.pop(group.name) for group in self._groups if group.name in self._totals or not partly}

    def pop(self, group: str) -> Tensor:
        """(size,) sums of one group since the last time.

        Raises:
            ValueError: it got none.
        """
        if group not in self._totals:
            raise ValueError(f"no element scores for any parameter of group {group!r}")
        return self._totals.pop(group)


class WholeUnitSums:
    """`UnitSums` that hands over the sums of a group, and lets them go, as soon as all of its parameters have come.

    Args:
        groups: the units to score.
        params: names of the parameters whose scores come, each once before any comes again.
        take: called with the name of a group and its (size,) sums, which are given away.

    Raises:
        ValueError: a group owns rows of none of these parameters.
    """

    def __init__(
        self, groups: Sequence[UnitGroup], params: Collection[str], take: Callable[[str, Tensor], object]
    ) -> None:
        self._sums, self._take = UnitSums(groups), take
        self._awaited = {
            group.name: {member.param for member in group.members if member.param in params} for group in groups
        }
        without = next((name for name, awaited in self._awaited.items() if not awaited), None)
        if without is not None:
            raise ValueError(f"no element scores for any parameter of group {without!r}")
        self._left = {name: len(awaited) for name, awaited in self._awaited.items()}
        self._readers: dict[str, list[str]] = {}
        for group, awaited in self._awaited.items():
            for name in awaited:
                self._readers.setdefault(name, []).append(group)

    def add(self, name: str, elements: Tensor) -> None:
        """The scores of one parameter's elements, given away."""
        self._sums.add(name, elements)
        for group in self._readers.get(name, ()):
            self._left[group] -= 1
            if not self._left[group]:
                self._left[group] = len(self._awaited[group])
                self._take(group, self._sums.pop(group))


def _over_rows(elements: Tensor, group: UnitGroup, member: Member) -> Tensor:
    """(group.size,) sums over the rows that each unit owns."""
    others = [dim for dim in range(elements.ndim) if dim != member.dim % elements.ndim]
    by_row = elements.sum(dim=others) if others else elements
    units = by_row if member.rows is None else by_row[member.rows].sum(dim=1)
    if units.shape != (group.size,):
        raise ValueError(
            f"group {group.name!r} has {group.size} units but {member.param!r} scores fold to {tuple(units.shape)}"
        )
    return units


def mask_of(masks: Mapping[str, Tensor], name: str, size: int) -> Tensor:
    """The mask of group `name`; raises ValueError unless `masks` has one of shape (size,)."""
    mask = masks.get(name)
    if mask is None or mask.shape != (size,):
        got = sorted(masks) if mask is None else tuple(mask.shape)
        raise ValueError(f"masks must give {name!r} the shape ({size},), got {got}")
    return mask


def check_keep(keep: Keep, groups: Sequence[UnitGroup]) -> None:
    """Raise ValueError unless `keep` has one bool mask of the right size for each group."""
    for group in groups:
        mask = keep.get(group.name)
        if mask is None:
            raise ValueError(f"keep has no mask for group {group.name!r}; it has {sorted(keep)}")
        if mask.dtype != torch.bool or mask.shape != (group.size,):
            raise ValueError(
                f"keep[{group.name!r}] must be bool of shape ({group.size},), got {mask.dtype} {tuple(mask.shape)}"
            )
