"""Where blocks line up, whole channels go: empty blocks that a unit map shows to be dead are cut, not just skipped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from secateur.surgery.dead import find_read
from secateur.surgery.layers import join_name
from secateur.surgery.network import Network, rows_of
from secateur.units import Keep

BlockMasks = Mapping[str, Bool[Tensor, "high wide"]]
"""Name of a linear layer -> which of its blocks stay."""


@torch.no_grad()
def write_block_zeros(network: torch.nn.Module, keep: BlockMasks) -> None:
    """Set the blocks that go to 0, in place."""
    for name, kept in keep.items():
        weight = network.get_submodule(name).weight
        weight.masked_fill_(~expand_blocks(kept.to(weight.device), weight.shape), 0)  # type: ignore[operator,arg-type]


def expand_blocks(keep: Bool[Tensor, "high wide"], shape: torch.Size) -> Bool[Tensor, "rows columns"]:
    """The mask of single weights.

    Raises:
        ValueError: a matrix of this shape has no such whole blocks.
    """
    high, wide = keep.shape
    if len(shape) != 2 or not keep.numel() or shape[0] % high or shape[1] % wide:
        raise ValueError(f"a weight of {tuple(shape)} has no {high} x {wide} whole blocks")
    return keep.repeat_interleave(shape[0] // high, 0).repeat_interleave(shape[1] // wide, 1)


def compact(network: Network, keep: BlockMasks) -> tuple[Network, dict[str, Bool[Tensor, "high wide"]]]:
    """The network without the channels and heads that empty blocks leave dead, and the masks of what is left.

    A unit that nothing reads any more (`secateur.surgery.dead.find_read`) is cut if every block that its rows and
    columns lie in goes whole: so blocks keep their size, and what cannot be cut stays sparse. The function stays as it
    is, up to the rounding of sums of fewer terms.

    Args:
        network: its groups say which rows and columns of which layers belong together; blocks that go are 0 in it.
        keep: which blocks stay, layer by layer.

    Raises:
        ValueError: a mask does not fit its layer.
    """
    tensors = network.tensors()
    masks = {join_name(name, "weight"): kept for name, kept in keep.items()}
    for name, mask in masks.items():
        expand_blocks(mask, tensors[name].shape)
    stays = find_read(network)
    while not _aligned(network, masks, stays):
        pass
    small = network.cut(stays)
    left = {}
    for name, kept in keep.items():
        rows = [small.cuts.rows.get((join_name(name, "weight"), dim)) for dim in (0, 1)]
        before = [network.cuts.rows.get((join_name(name, "weight"), dim)) for dim in (0, 1)]
        for dim in (0, 1):
            now, old = rows[dim], before[dim]
            if now is not None and (old is None or len(old.rows) != len(now.rows)):
                here = now.rows if old is None else torch.isin(old.rows, now.rows).nonzero()[:, 0]
                each = tensors[join_name(name, "weight")].shape[dim] // kept.shape[dim]
                kept = kept.index_select(dim, (here[::each] // each).to(kept.device))
        left[name] = kept
    return small, left


def _aligned(network: Network, masks: BlockMasks, stays: Keep) -> bool:
    """Let units stay that share a block with one that stays; True when there was none."""
    tensors, settled = network.tensors(), True
    for group in network.groups():
        for member in group.members:
            if member.param not in masks:
                continue
            size = tensors[member.param].shape[member.dim]
            blocks = rows_of(member, group.size) // (size // masks[member.param].shape[member.dim])
            needed = torch.ones(masks[member.param].shape[member.dim], dtype=torch.bool)
            needed[blocks[~stays[group.name]].flatten()] = False
            # Rows that no unit of this group owns stay, and so do their blocks.
            owned = torch.zeros(size, dtype=torch.bool)
            owned[rows_of(member, group.size).flatten()] = True
            needed |= ~owned.view(len(needed), -1).all(1)
            needed[blocks[stays[group.name]].flatten()] = True
            more = ~stays[group.name] & needed[blocks].any(1)
            if bool(more.any()):
                stays[group.name] = stays[group.name] | more
                settled = False
    return settled
