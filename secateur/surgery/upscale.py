"""Unconstrained pruning: each layer chooses what it reads of a stream, and each branch what it adds to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from secateur.surgery.consecutive import consecutive_order
from secateur.surgery.cost import with_costs
from secateur.surgery.cut import Cuts, Kept, cut_module
from secateur.surgery.layers import named_tensors, split_name
from secateur.surgery.masking import Scale, masked_tensors, spread
from secateur.surgery.network import Network, reads_units, rows_of
from secateur.surgery.reorder import reordered
from secateur.surgery.selecting import Channels
from secateur.units import Keep, Member, UnitGroup, check_keep, mask_of

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True, slots=True)
class _End:
    """Where units of a group are read or written: the group's name, the module, the rows, where its channels are."""

    group: str
    module: str
    members: tuple[Member, ...]
    dim: int
    reads: bool


class Unconstrained:
    """A network each of whose layers has units of its own: what it reads of a stream that others read too.

    UPSCALE (Wan et al., arXiv 2307.08771): pruning with no constraint that layers agree. At the cut, the channels of a
    stream are put into an order in which as many layers as possible read a slice, which is a view; the others gather,
    which copies. What no layer reads goes at its source. Branches of a residual stream may add to some channels alone,
    as with the index-add of Tessier et al. (arXiv 2206.06247).

    It is a `Prunable`: a group for each layer that reads a group of the network ("head reads stem"), and for each
    branch ("a2 writes stem"); criteria, allocators and masks work on it as on any other.

    Args:
        network: of convolutions and linear layers, in groups that own rows; layers of other kinds read everything.
        branches: names of modules that are added to a stream; each with one layer that writes it, and perhaps norms
            behind that.

    Raises:
        ValueError: a branch writes no stream, or several.
    """

    def __init__(self, network: Network, branches: Collection[str] = ()) -> None:
        self.network = network
        self._ends: dict[str, _End] = {}
        for group in network.groups():
            if group.name in network.blocks or group.name in network.scattered:
                continue
            for member in group.members:
                layer = split_name(member.param)[0]
                dim = _channel_dim(network.module.get_submodule(layer))
                if reads_units(network.module, member) and dim:
                    self._ends[f"{layer} reads {group.name}"] = _End(group.name, layer, (member,), dim, True)
        for branch in branches:
            end = _find_branch(network, branch)
            self._ends[f"{branch} writes {end.group}"] = end
        sizes = {group.name: group.size for group in network.groups()}
        groups = [UnitGroup(name, sizes[end.group], end.members) for name, end in self._ends.items()]
        self._groups = with_costs(groups, named_tensors(network.module), network.usage, (), {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        return self.network(*args, **kwargs)

    def tensors(self) -> Mapping[str, Tensor]:
        """The module's parameters by qualified name."""
        return self.network.tensors()

    def groups(self) -> Sequence[UnitGroup]:
        """What each layer reads and each branch writes, with what leaving each out saves."""
        return self._groups

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """While the context is open, a layer reads, or a branch writes, unit i of its group times `masks[group][i]`.

        Raises:
            ValueError: `masks` lacks a group, or a mask has another size.
        """
        readers: dict[str, list[Scale]] = {}
        with ExitStack() as stack:
            for group in self._groups:
                mask, end = mask_of(masks, group.name, group.size), self._ends[group.name]
                scale = Scale(end.members[0].dim, rows_of(end.members[0], group.size), mask)
                if end.reads:
                    readers.setdefault(end.members[0].param, []).append(scale)
                else:
                    stack.enter_context(_masked_output(self.network.module.get_submodule(end.module), end.dim, scale))
            stack.enter_context(masked_tensors(self.network.module, readers))
            yield

    def cut(self, keep: Keep) -> Network:
        """A network that holds what is read and written alone. It has no groups.

        Raises:
            ValueError: `keep` does not fit the groups, or a layer is to read, or a branch to write, nothing.
        """
        check_keep(keep, self._groups)
        empty = [name for name in self._ends if not bool(keep[name].any())]
        if empty:
            raise ValueError(f"keep leaves nothing of {empty[0]!r}; a layer reads one unit at least")
        orders, alive = {}, {}
        for group in self.network.groups():
            alive[group.name] = torch.ones(group.size, dtype=torch.bool)
            if group.name in self.network.blocks or group.name in self.network.scattered:
                continue
            reads = {n: keep[n].cpu() for n, end in self._ends.items() if end.group == group.name and end.reads}
            if self._all_known(group, len(reads)):
                alive[group.name] = torch.stack(list(reads.values())).any(0)
                missing = min(group.min_keep, group.size) - int(alive[group.name].sum())
                alive[group.name][torch.nonzero(~alive[group.name])[: max(0, missing), 0]] = True
            orders[group.name] = self._side_by_side(reads, alive[group.name])
        front = {name: torch.arange(len(mask)) < int(mask.sum()) for name, mask in alive.items()}
        small = reordered(self.network, orders).cut({**alive, **{name: front[name] for name in orders}})
        own = self._own(small, {n: keep[n].cpu()[orders[end.group]] for n, end in self._ends.items()})
        module = cut_module(small.module, own)
        return Network(
            module, (), self.network.example_inputs, cuts=small.cuts.then(own), left_out=self.network.left_out
        )

    def _all_known(self, group: UnitGroup, readers: int) -> bool:
        """Whether what these layers do not read is seen by nothing, norms over several units included."""
        module = self.network.module
        all_readers = [member for member in group.members if reads_units(module, member)]
        norms = [m for m in group.members if isinstance(module.get_submodule(split_name(m.param)[0]), _NORMS)]
        return readers == len(all_readers) > 0 and not norms

    def _side_by_side(self, reads: Mapping[str, Tensor], alive: Tensor) -> Tensor:
        """An order of the units: those that are alive first, and most of what layers read side by side."""
        living = torch.nonzero(alive)[:, 0]
        sets = {name: frozenset(torch.nonzero(mask[living])[:, 0].tolist()) for name, mask in reads.items()}
        chosen: list[frozenset[int]] = []
        order = list(range(len(living)))
        # The largest copies are spared first.
        for name in sorted(sets, key=lambda name: -len(sets[name])):
            found = consecutive_order([*chosen, sets[name]], len(living))
            if found is not None:
                chosen.append(sets[name])
                order = found
        return torch.cat([living[torch.tensor(order, dtype=torch.int64)], torch.nonzero(~alive)[:, 0]])

    def _own(self, small: Network, keep: Mapping[str, Tensor]) -> Cuts:
        """What each layer and branch still loses on its own, in the numbering of the network that all share."""
        tensors = named_tensors(small.module)
        groups = {group.name: group for group in small.groups()}
        stays: dict[tuple[str, int], Tensor] = {}
        for name, end in self._ends.items():
            group = groups[end.group]
            lost = ~keep[name][: group.size]
            names = {(member.param, member.dim) for member in end.members}
            for member in group.members:
                key = (member.param, member.dim)
                if key in names:
                    mask = stays.setdefault(key, torch.ones(tensors[key[0]].shape[key[1]], dtype=torch.bool))
                    mask[rows_of(member, group.size)[lost].flatten()] = False
        rows = {key: Kept(len(mask), torch.nonzero(mask)[:, 0]) for key, mask in stays.items() if not bool(mask.all())}
        gathers: dict[str, Channels] = {}
        scatters: dict[str, Channels] = {}
        for end in self._ends.values():
            kept = rows.get((end.members[0].param, end.members[0].dim))
            if kept is not None:
                (gathers if end.reads else scatters)[end.module] = Channels(end.dim, kept.size, kept.rows)
        return Cuts(rows, gathers=gathers, scatters=scatters)


def _channel_dim(layer: nn.Module) -> int:
    """Where the layer's channels are, from the end of a tensor; 0 for a layer that cannot read or write some alone."""
    if isinstance(layer, _ConvNd):
        return -1 - len(layer.kernel_size) if layer.groups == 1 else 0
    # A subclass of nn.Linear may be read by its weight alone, as attention's out_proj is.
    return -1 if type(layer) is nn.Linear else 0


def _find_branch(network: Network, branch: str) -> _End:
    """The tensors of a branch whose rows are the stream's units: of the layer that writes it, and of what follows."""
    module = network.module.get_submodule(branch)
    order = [f"{branch}.{name}" if name else branch for name, _ in module.named_modules()]
    found = []
    for group in network.groups():
        inside = [m for m in group.members if split_name(m.param)[0] in order and not reads_units(network.module, m)]
        places = [m for m in inside if _channel_dim(network.module.get_submodule(split_name(m.param)[0]))]
        writers = list(dict.fromkeys(split_name(m.param)[0] for m in places))
        if writers:
            found.append((group.name, writers, inside))
    last = max((order.index(writer) for _, writers, _ in found for writer in writers), default=-1)
    found = [entry for entry in found if order[last] in entry[1]]
    if len(found) != 1 or len(found[0][1]) != 1:
        raise ValueError(
            f"branch {branch!r} must end in one convolution or linear layer that writes units of one group"
        )
    group_name, (writer,), inside = found[0]
    members = [m for m in inside if order.index(split_name(m.param)[0]) >= last]
    members.sort(key=lambda m: (split_name(m.param)[0] != writer, not m.param.endswith("weight")))
    return _End(group_name, branch, tuple(members), _channel_dim(network.module.get_submodule(writer)), False)


@contextmanager
def _masked_output(module: nn.Module, dim: int, scale: Scale) -> Iterator[None]:
    def hide(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        shape = [1] * output.dim()
        shape[dim] = -1
        return output * spread(scale, output.shape[dim], output).view(shape)

    handle = module.register_forward_hook(hide)
    try:
        yield
    finally:
        handle.remove()
