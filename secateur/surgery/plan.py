"""What a cut would leave, before anything is loaded: parameters, bytes and multiply-adds on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from secateur.allocation import Budget, allocate_per_group
from secateur.surgery.cost import count_bytes, count_params
from secateur.surgery.network import Network
from secateur.units import Keep


@dataclass(frozen=True, slots=True)
class Size:
    """What a network takes.

    Args:
        params: its parameters.
        bytes: of its parameters and buffers.
        macs: multiply-adds of one forward of the network's example inputs, attention included; None without inputs.
    """

    params: int
    bytes: int
    macs: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A network before and after a cut.

    Args:
        dense: before.
        pruned: after.
        units: group name -> (units that stay, units).
    """

    dense: Size
    pruned: Size
    units: Mapping[str, tuple[int, int]]

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Units that stay and units, by the last part of the groups' names (`heads`, `neurons`, a block's own name)."""
        totals: dict[str, tuple[int, int]] = {}
        for name, (kept, size) in self.units.items():
            kind = name.rpartition(".")[2]
            before = totals.get(kind, (0, 0))
            totals[kind] = (before[0] + kept, before[1] + size)
        return totals


def measure(network: Network) -> Size:
    """The size of the network as it is. Works on the meta device, where nothing is computed."""
    macs = None if network.usage is None else round(network.usage.macs)
    return Size(count_params(network.module), count_bytes(network.module), macs)


def plan(network: Network, keep: Keep) -> Plan:
    """What the network would be with only these units. On the meta device that takes seconds and no memory.

    Raises:
        ValueError: `keep` does not fit the groups.
    """
    units = {group.name: (int(keep[group.name].sum()), group.size) for group in network.groups()}
    return Plan(measure(network), measure(network.cut(keep)), units)


def plan_evenly(network: Network, budget: Budget) -> Plan:
    """The plan of a budget where no unit is worth more than another: every group loses the same share of its cost.

    Which units go hardly changes a size, so this is what to expect before there are scores.

    Raises:
        ValueError: the budget cannot hold the floors.
    """
    scores = {group.name: -torch.arange(group.size, dtype=torch.float32) for group in network.groups()}
    return plan(network, allocate_per_group(scores, network.groups(), budget))
