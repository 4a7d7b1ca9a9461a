"""What may go from a network, kind by kind: how many units there are, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from secateur.allocation import unit_costs
from secateur.surgery.plan import Size
from secateur.units import Prunable

Kind = TypeVar("Kind", bound=str)


@dataclass(frozen=True, slots=True)
class UnitKind:
    """The units of one kind.

    Args:
        groups: in how many groups they are.
        units: how many they are.
        params: parameters that they own together.
        macs: multiply-adds of a forward of one sample that they take.
    """

    groups: int
    units: int
    params: int
    macs: int


def count_kinds(kinds: Iterable[Kind], units_of: Callable[[Kind], Prunable]) -> dict[str, UnitKind]:
    """Kind -> its units, of those kinds that the network has.

    Args:
        kinds: to look for.
        units_of: gives the units of one kind, or raises ValueError where the network has none.

    Raises:
        ValueError: it has none of any kind; what `units_of` said last.
    """
    found: dict[str, UnitKind] = {}
    refused = "no kinds to look for"
    for kind in kinds:
        try:
            groups = units_of(kind).groups()
        except ValueError as error:
            refused = str(error)
            continue
        params, macs = (sum(float(unit_costs(group, cost).sum()) for group in groups) for cost in ("params", "macs"))
        found[kind] = UnitKind(len(groups), sum(group.size for group in groups), round(params), round(macs))
    if not found:
        raise ValueError(refused)
    return found


KIND_COLUMNS = ("units", "groups", "count", "parameters", "multiply-adds")


def kind_rows(kinds: Mapping[str, UnitKind], whole: Size) -> Iterator[tuple[str, ...]]:
    """A row of a table for each kind, with shares of the whole network."""
    for name, kind in kinds.items():
        shares = (f"{kind.params / whole.params:.1%}", f"{kind.macs / (whole.macs or 1):.1%}")
        yield (name.replace("_", "-"), f"{kind.groups:,}", f"{kind.units:,}", *shares)
