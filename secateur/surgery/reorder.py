"""Putting the units of a network into another order, which changes nothing that it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Int64
from torch import Tensor

from secateur.surgery.cut import Cuts, Kept, cut_module
from secateur.surgery.layers import named_tensors
from secateur.surgery.network import Network, rows_of


def reordered(network: Network, orders: Mapping[str, Int64[Tensor, " units"]]) -> Network:
    """A copy of the network whose unit i of a group is the old unit `orders[group][i]`.

    Writers and readers of a unit move together, so the outputs are those of the network, up to the rounding of sums in
    another order. Ordering channels so that those who stay lie side by side lets a consumer read a slice instead of
    gathering (UPSCALE, Wan et al., arXiv 2307.08771).

    Args:
        network: any network whose groups own rows.
        orders: group name -> a permutation of its units; groups that are absent stay as they are.

    Raises:
        ValueError: there is no such group, it is a group of blocks, or the order is no permutation of its units.
    """
    groups = {group.name: group for group in network.groups()}
    tensors = named_tensors(network.module)
    rows: dict[tuple[str, int], Tensor] = {}
    for name, order in orders.items():
        if name not in groups or name in network.blocks or name in network.scattered:
            raise ValueError(f"no group {name!r} whose units can change places; there are {sorted(groups)}")
        group = groups[name]
        if not torch.equal(order.cpu().sort().values, torch.arange(group.size)):
            raise ValueError(f"the order of group {name!r} must be a permutation of {group.size} units")
        for member in group.members:
            size = tensors[member.param].shape[member.dim]
            places = rows.setdefault((member.param, member.dim), torch.arange(size))
            owned = rows_of(member, group.size)
            places[owned.flatten()] = owned[order.cpu()].flatten()
        costs = {cost: amounts[order.to(amounts.device)] for cost, amounts in group.cost.items()}
        groups[name] = replace(group, cost=costs)
    cuts = Cuts({key: Kept(len(places), places) for key, places in rows.items()})
    return Network(
        cut_module(network.module, cuts),
        groups.values(),
        network.example_inputs,
        blocks=network.blocks,
        counts=network.counts,
        cuts=network.cuts.then(cuts),
        left_out=network.left_out,
        emptied=network.emptied,
        scattered=network.scattered,
    )
