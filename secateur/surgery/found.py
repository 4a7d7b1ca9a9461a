"""What a search for units in a known architecture finds, and the `Network` that it makes of it.

A domain writes one finder a kind of unit: it walks the modules, recognises a layer by what it is, and yields the group
that can be masked and cut, or the reason why a layer that looks like one cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from secateur.surgery.attention import block_group
from secateur.surgery.cut import Count, Cuts
from secateur.surgery.network import Network
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
        factors: parameters of members whose rows make factors of products between activations.
    """

    group: UnitGroup
    counts: tuple[Count, ...] = ()
    blocks: tuple[Block, ...] = ()
    emptied: Block | None = None
    scattered: bool = False
    factors: tuple[str, ...] = ()


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


def whole(model: nn.Module, block: Block) -> Found:
    """A block as a group of one unit, which may go."""
    group, _ = block_group(model, block.module, block.module, leaves=block.leaves, outputs=block.outputs)
    kept = block.pieces()
    members = tuple(
        member
        for member in group.members
        if not any(member.param == piece or member.param.startswith(f"{piece}.") for piece in kept)
    )
    return Found(UnitGroup(group.name, 1, members, min_keep=0), blocks=(block,))


def merged(found: Iterable[Found | LeftOut]) -> tuple[list[Found], dict[str, str]]:
    """The groups, and the reasons of those that were left out by module name."""
    kept, left_out = [], {}
    for entry in found:
        if isinstance(entry, LeftOut):
            left_out[entry.module] = entry.reason
        else:
            kept.append(entry)
    return kept, left_out


Find = Callable[[nn.Module, int], Iterator[Found | LeftOut]]
"""Finds the groups of one kind of unit in a model; told the fewest units of a layer that may stay."""


def find_network(
    model: nn.Module,
    finders: Mapping[str, Find],
    kinds: Sequence[str],
    example_inputs: Any = None,
    *,
    modules: Sequence[str] = ("*",),
    min_keep: int = 1,
    cuts: Cuts | None = None,
) -> Network:
    """The units of those kinds as a network; what looks like units but cannot be cut is in its `left_out`.

    Args:
        model: the network, on any device, the meta device too. It is not changed.
        finders: kind -> what finds its units. A group that two kinds find is taken once.
        kinds: which units.
        example_inputs: as for `Network`: what multiply-adds are counted with; None: they are not counted.
        modules: patterns (`*` matches anything) over module names; only units below one that matches are taken.
        min_keep: the fewest units of a layer that may stay. 0 lets a layer lose all: then it still adds its bias.
            Whole modules may always go.
        cuts: what was cut from the model before, if it was.

    Raises:
        ValueError: the model has no units of a kind, or a pattern matches nothing.
    """
    found: list[Found] = []
    left_out: dict[str, str] = {}
    for kind in dict.fromkeys(kinds):
        if kind not in finders:
            raise ValueError(f"there are no units of kind {kind!r}; there are {sorted(finders)}")
        entries, reasons = merged(finders[kind](model, min_keep))
        if not entries:
            raise ValueError(f"{type(model).__name__} has no {kind} that could be cut{_because(reasons)}")
        taken = {entry.group.name for entry in found}
        found += [entry for entry in entries if entry.group.name not in taken]
        left_out |= reasons
    chosen = _matching(found, modules)
    return Network(
        model,
        [entry.group for entry in chosen],
        example_inputs,
        blocks={entry.group.name: entry.blocks for entry in chosen if entry.blocks},
        counts=[count for entry in chosen for count in entry.counts],
        cuts=cuts,
        left_out=left_out,
        emptied={entry.group.name: entry.emptied for entry in chosen if entry.emptied},
        scattered=[entry.group.name for entry in chosen if entry.scattered],
        factors={entry.group.name: entry.factors for entry in chosen if entry.factors},
    )


def _because(reasons: Mapping[str, str]) -> str:
    return "".join(f": {module}: {reason}" for module, reason in list(reasons.items())[:1])


def _matching(found: Sequence[Found], patterns: Sequence[str]) -> list[Found]:
    """The groups whose name, or the name of a module above, matches one of the patterns."""
    chosen: dict[str, Found] = {}
    for pattern in patterns:
        hits = [entry for entry in found if _matches(entry.group.name, pattern)]
        if not hits:
            raise ValueError(
                f"module pattern {pattern!r} matches none of {len(found)} groups, such as {found[0].group.name!r}"
            )
        chosen |= {entry.group.name: entry for entry in hits}
    return [entry for entry in found if entry.group.name in chosen]


def _matches(name: str, pattern: str) -> bool:
    steps = name.split(".")
    return any(fnmatchcase(".".join(steps[:end]), pattern) for end in range(1, len(steps) + 1))
