"""Where the entries of an architecture vector act: gates on the width of layers, and on whole blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from secateur.surgery.cost import evaluating, run_example
from secateur.surgery.network import Network
from secateur.units import UnitGroup


@dataclass(frozen=True, slots=True)
class Width:
    """The gates of one group of units.

    Args:
        group: its name.
        size: its units.
        gates: how many entries it has; each opens a run of neighbouring units.
        least: gates that always stay open.
        weight: of an entry in `Layout.features`.
        blocks: places in `Layout.depths` of the blocks that hold it.
    """

    group: str
    size: int
    gates: int
    least: int
    weight: float
    blocks: tuple[int, ...] = ()

    def gate_of_unit(self) -> Int64[Tensor, " size"]:
        """Which of the gates opens each unit."""
        return torch.arange(self.size) * self.gates // self.size


@dataclass(frozen=True, slots=True)
class Depth:
    """The gate of a whole block.

    Args:
        group: name of the group of one unit.
        weight: of the entry in `Layout.features`.
    """

    group: str
    weight: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The entries of an architecture vector: those of `widths`, one after another, then one for each of `depths`.

    Args:
        widths: gates on heads, neurons, channels.
        depths: gates on blocks, from the last to go to the first.
    """

    widths: tuple[Width, ...]
    depths: tuple[Depth, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Entries of each head of the predictor: a group's gates each, and all depth gates together."""
        return [width.gates for width in self.widths] + ([len(self.depths)] if self.depths else [])

    def __len__(self) -> int:
        return sum(self.sizes)

    def masks(self, gates: Float[Tensor, " D"]) -> dict[str, Tensor]:
        """Group name -> (size,) mask for `Network.masked`, of one vector of gates."""
        parts = gates.split(self.sizes)
        masks = {
            width.group: part[width.gate_of_unit().to(part.device)]
            for width, part in zip(self.widths, parts, strict=False)
        }
        return masks | {depth.group: parts[-1][place : place + 1] for place, depth in enumerate(self.depths)}

    def features(self, gates: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What architectures are compared by: gates times those of the blocks that hold them, weighed by cost.

        An entry weighs the multiply-adds of its group over the root of the group's gates, as in APTP's code.
        """
        parts = list(gates.split(self.sizes, dim=1))
        depths = parts[-1] if self.depths else gates.new_ones(len(gates), 0)
        found = [
            width.weight * part * depths[:, list(width.blocks)].prod(1, keepdim=True)
            for width, part in zip(self.widths, parts, strict=False)
        ]
        weights = depths.new_tensor([depth.weight for depth in self.depths])
        return torch.cat([*found, depths * weights], dim=1)

    def to_fields(self) -> dict[str, Any]:
        """What JSON can hold of it; `from_fields` reads it."""
        widths = [[w.group, w.size, w.gates, w.least, w.weight, list(w.blocks)] for w in self.widths]
        return {"widths": widths, "depths": [[depth.group, depth.weight] for depth in self.depths]}

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> Layout:
        """The layout that `to_fields` wrote."""
        widths = tuple(
            Width(str(group), int(size), int(gates), int(least), float(weight), tuple(map(int, blocks)))
            for group, size, gates, least, weight, blocks in fields["widths"]
        )
        return Layout(widths, tuple(Depth(str(group), float(weight)) for group, weight in fields["depths"]))

    def check_fits(self, network: Network) -> None:
        """Raise ValueError unless the network has exactly these groups."""
        wanted = {width.group: width.size for width in self.widths} | {depth.group: 1 for depth in self.depths}
        held = {group.name: group.size for group in network.groups()}
        wrong = [name for name in {**wanted, **held} if wanted.get(name) != held.get(name)]
        if wrong:
            raise ValueError(
                f"the router gates {wanted.get(wrong[0], 'no')} units of {wrong[0]!r}, the network has "
                f"{held.get(wrong[0], 'none')}: it was made for another network"
            )


def layout_of(network: Network, gates: int = 32) -> Layout:
    """The layout for a network with units of any kinds; whole modules become depth gates, in one order for all.

    Blocks go from the middle of the network outwards (APTP, arXiv 2406.12042, whose order for Stable Diffusion is such
    a one): the order is that of the calls in a forward of the example inputs.

    Args:
        network: with example inputs.
        gates: the most entries that one group gets; larger groups are gated in runs of units (32 in the paper).

    Raises:
        ValueError: `gates` is below 1; there are no example inputs, no widths, a group of several blocks, or a block
            that a forward does not call.
    """
    if gates < 1:
        raise ValueError(f"a group needs at least 1 gate, got {gates}")
    if network.usage is None:
        raise ValueError("the cost of gates is counted in multiply-adds: give the network example inputs")
    groups = {group.name: group for group in network.groups()}
    several = [name for name, units in network.blocks.items() if len(units) != 1]
    if several:
        raise ValueError(f"group {several[0]!r} has several blocks; a depth gate needs a group of one")
    total = network.usage.macs
    order = _outermost_first(network)
    depths = tuple(Depth(name, _macs(groups[name]) / total) for name in order)
    modules = [f"{network.blocks[name][0].module}." for name in order]
    widths = tuple(
        _width(group, min(gates, group.size), total, modules)
        for name, group in groups.items()
        if name not in network.blocks
    )
    if not widths:
        raise ValueError("the network has no heads, neurons or channels to gate; it has blocks alone")
    return Layout(widths, depths)


def _width(group: UnitGroup, gates: int, total: float, modules: Sequence[str]) -> Width:
    least = max(1, ceil(group.min_keep / (group.size // gates)))
    weight = _macs(group) / total / sqrt(gates)
    blocks = tuple(place for place, module in enumerate(modules) if group.name.startswith(module))
    return Width(group.name, group.size, gates, min(gates, least), weight, blocks)


def _macs(group: UnitGroup) -> float:
    return float(group.cost["macs"].sum())


def _outermost_first(network: Network) -> list[str]:
    """Names of the groups of blocks, those that are called first and last before those called halfway."""
    called = _called(network, {name: units[0].module for name, units in network.blocks.items()})
    middle = (len(called) - 1) / 2
    places = sorted(range(len(called)), key=lambda place: (-abs(place - middle), place))
    return [called[place] for place in places]


def _called(network: Network, modules: Mapping[str, str]) -> list[str]:
    """The names in the order in which a forward first calls their modules."""
    called: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.setdefault(name)

    handles = [
        network.module.get_submodule(module).register_forward_pre_hook(note(name)) for name, module in modules.items()
    ]
    try:
        with evaluating(network.module), torch.no_grad():
            run_example(network.module, network.example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in modules if name not in called]
    if missing:
        raise ValueError(f"a forward of the example inputs does not call block {missing[0]!r}")
    return list(called)


def at_least(soft: Float[Tensor, "N gates"], least: int) -> Bool[Tensor, "N gates"]:
    """Which gates are open: those at 0.5 or above, and the `least` largest of each row anyway."""
    kept = torch.zeros_like(soft, dtype=torch.bool)
    kept.scatter_(1, soft.topk(least, dim=1).indices, True)
    return kept | (soft >= 0.5)
