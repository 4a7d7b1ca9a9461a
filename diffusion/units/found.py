"""What a search for units finds: groups, and what the core has to know to mask and cut them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from secateur.surgery.cut import Count
from secateur.surgery.stand_in import Block
from secateur.units import UnitGroup


@dataclass(frozen=True, slots=True)
class Found:
    """One group of units.

    Args:
        group: its name, size and members.
        counts: attributes of modules that count its units.
        blocks: what each unit removes as a whole module, where it does.
        emptied: what goes once none of the units is left, where the layer could not run without them.
        scattered: the units are outputs of a linear layer that keeps its width.
    """

    group: UnitGroup
    counts: tuple[Count, ...] = ()
    blocks: tuple[Block, ...] = ()
    emptied: Block | None = None
    scattered: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A module that looks like units of a kind but cannot be cut, and why."""

    module: str
    reason: str


def linear(module: nn.Module, name: str) -> nn.Linear | None:
    """The submodule of that name if it is a linear layer (or a LoRA-compatible one), else None."""
    found = part(module, name)
    return found if isinstance(found, nn.Linear) else None


def width(module: nn.Module, layer: str, dim: int) -> int:
    """Outputs (`dim` 0) or inputs (`dim` 1) of the linear layer of that name; 0 where there is none."""
    found = linear(module, layer)
    return 0 if found is None else found.weight.shape[dim]


def part(module: nn.Module, name: str) -> nn.Module | None:
    """The submodule of that dotted name, else None."""
    found: nn.Module | None = module
    for step in name.split("."):
        found = found._modules.get(step) if found is not None else None
    return found


def integer(module: nn.Module, attribute: str) -> int | None:
    """The attribute if the module holds it as an int, else None."""
    value = vars(module).get(attribute)
    return value if type(value) is int else None


def named(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules below the root by qualified name, each once."""
    return ((name, child) for name, child in module.named_modules() if name)


def counting(name: str, module: nn.Module, values: Mapping[str, int], units: int) -> tuple[Count, ...]:
    """`Count`s of those attributes of the module that hold the value given, which `units` units make up."""
    return tuple(
        Count(name, attribute, "", value // units)
        for attribute, value in values.items()
        if value and integer(module, attribute) == value
    )


def merged(found: Iterable[Found | LeftOut]) -> tuple[list[Found], dict[str, str]]:
    """The groups, and the reasons of those that were left out by module name."""
    kept, left_out = [], {}
    for entry in found:
        if isinstance(entry, LeftOut):
            left_out[entry.module] = entry.reason
        else:
            kept.append(entry)
    return kept, left_out
