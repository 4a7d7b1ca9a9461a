"""Units that nothing reads any more, as sparse training, penalties and masks leave them: to cut them costs nothing."""

from __future__ import annotations

import torch
from torch import nn

from secateur.surgery.layers import named_tensors
from secateur.surgery.network import Network, reads_units, rows_of
from secateur.units import Keep

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@torch.no_grad()
def find_read(network: Network) -> Keep:
    """Group name -> (size,) bool: units with a weight other than 0 among those that read them, and `min_keep` at least.

    A unit whose readers' columns are all 0 cannot be seen in the output, whatever its bias or batch norm makes of it,
    so to cut it is exact: the zero-invariant groups of Only Train Once (Chen et al. 2021, arXiv 2107.07467), without a
    demand on what lies between. A head is read by the columns of its output projection: block pruning that empties
    these removes the head (Lagunas et al. 2021, arXiv 2109.04838). Blocks are never found dead, and neither are units
    that a norm counts along with others, for they still show in its mean.
    """
    tensors = named_tensors(network.module)
    keep = {}
    for group in network.groups():
        readers = [member for member in group.members if reads_units(network.module, member)]
        norms = [member for member in group.members if isinstance(_owner(network, member.param), _NORMS)]
        read = torch.zeros(group.size, dtype=torch.bool)
        if group.name in network.blocks or norms or not readers:
            read[:] = True
        for member in readers:
            seen = tensors[member.param].movedim(member.dim, 0).flatten(1).ne(0).any(1).cpu()
            read |= seen[rows_of(member, group.size)].any(1)
        floor = min(group.min_keep, group.size) - int(read.sum())
        if floor > 0:
            read[torch.nonzero(~read)[:floor, 0]] = True
        keep[group.name] = read
    return keep


@torch.no_grad()
def cut_dead(network: Network) -> Network:
    """The network without the units that nothing reads, and without those that only they read, and so on.

    Tessier et al. 2022, Leveraging Structured Pruning of Convolutional Neural Networks (arXiv 2206.06247): whatever the
    mask, what it leaves empty is followed through the network, here from readers to what they read. The outputs stay as
    they are, up to the rounding of sums of fewer terms.
    """
    while True:
        keep = find_read(network)
        if all(bool(read.all()) for read in keep.values()):
            return network
        network = network.cut(keep)


def _owner(network: Network, name: str) -> nn.Module:
    return network.module.get_submodule(name.rpartition(".")[0])
