"""Torch networks as Prunables: any module, with the unit map that says what can go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from secateur.surgery.cost import Usage, measure_usage, with_costs
from secateur.surgery.cut import Count, Cuts, Kept, cut_module
from secateur.surgery.layers import find_quantised, named_tensors, reads, shared_names, split_name
from secateur.surgery.masking import Masked, Scale, masked_block, masked_norm, masked_tensors
from secateur.surgery.stand_in import Block, gone_with, kind_of
from secateur.units import Keep, Member, UnitGroup, check_keep, mask_of


class Network:
    """A module made of units that can be masked and cut.

    `secateur.surgery.trace` finds the unit map of convolutional and plain networks, `secateur.surgery.attention` writes
    those of attention and feed-forward blocks. `Member`s name parameters and buffers of the module. Buffers (the
    statistics of batch norms) are cut along, but are not among `tensors()`, so that no criterion scores them.

    Args:
        module: the network. It is never changed, but for masks while their context is open.
        groups: the units; their costs "params" and "bytes" are filled in, and "macs" where there are example inputs.
        example_inputs: what the module is called with when multiply-adds are counted: a tensor, or a tuple of
            arguments, or a dict of them by name.
        blocks: group name -> what each of its units removes as a whole module.
        counts: attributes of modules that count units.
        cuts: what was cut from the dense module before.
        left_out: name of a layer -> why its units are in no group.
        emptied: group name -> the block that goes once none of the group's units is left, and what it leaves then (an
            attention without heads still adds the bias of its last layer).
        scattered: names of groups whose units are outputs of linear layers that keep their width: those that go are 0.
        factors: group name -> parameters among its members whose rows make factors of products between activations
            (queries, which multiply keys): a mask acts on these rows too, where they are written.

    Raises:
        ValueError: a group has no units, no layer that reads them, or rows that do not exist, are shared with another
            group, or belong to a shared or quantised parameter.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Iterable[UnitGroup],
        example_inputs: Any = None,
        *,
        blocks: Mapping[str, Sequence[Block]] | None = None,
        counts: Iterable[Count] = (),
        cuts: Cuts | None = None,
        left_out: Mapping[str, str] | None = None,
        emptied: Mapping[str, Block] | None = None,
        scattered: Collection[str] = (),
        factors: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.module = module
        self.example_inputs = example_inputs
        self.blocks = {name: tuple(units) for name, units in (blocks or {}).items()}
        self.counts = tuple(counts)
        self.cuts = cuts or Cuts()
        self.left_out = dict(left_out or {})
        self.emptied = dict(emptied or {})
        self.scattered = frozenset(scattered)
        self.factors = {name: frozenset(parameters) for name, parameters in (factors or {}).items()}
        self._groups = tuple(groups)
        _check(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        return self.module(*args, **kwargs)

    def tensors(self) -> Mapping[str, Tensor]:
        """The module's parameters by qualified name."""
        return dict(self.module.named_parameters())

    def groups(self) -> Sequence[UnitGroup]:
        """The units with what each costs, where every other unit is as it is."""
        return self._costed

    @cached_property
    def usage(self) -> Usage | None:
        """How often each weight is used in a forward of the example inputs; None without example inputs."""
        return None if self.example_inputs is None else measure_usage(self.module, self.example_inputs)

    @cached_property
    def _costed(self) -> tuple[UnitGroup, ...]:
        return with_costs(self._groups, named_tensors(self.module), self.usage, self.counts, self.blocks)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """While the context is open, unit i of group g acts with strength `masks[g][i]`, wherever the module is called.

        A backward through gradient checkpointing belongs inside the context, because it runs the forward again.

        Raises:
            ValueError: `masks` lacks a group, or a mask has another size.
        """
        for group in self._groups:
            mask_of(masks, group.name, group.size)
        readers, norms = self._scales(masks)
        with ExitStack() as stack:
            stack.enter_context(masked_tensors(self.module, readers))
            for name, scales in norms.items():
                stack.enter_context(masked_norm(self.module.get_submodule(name), scales))  # type: ignore[arg-type]
            for group_name, blocks in self.blocks.items():
                for index, block in enumerate(blocks):
                    strength = _Strength(masks[group_name], index)
                    stack.enter_context(masked_block(self.module, block, strength))
            yield

    def cut(self, keep: Keep) -> Self:
        """A new network without the units that go; this one is left as it is.

        Raises:
            ValueError: `keep` does not fit the groups, leaves fewer than `min_keep`, or a mask is in force.
        """
        check_keep(keep, self._groups)
        for group in self._groups:
            left = int(keep[group.name].sum())
            if left < min(group.min_keep, group.size):
                raise ValueError(f"keep leaves {left} units of group {group.name!r}, which needs {group.min_keep}")
        if any(isinstance(child, Masked) for child in self.module.modules()):
            raise ValueError("a mask is in force; leave its context before cutting")
        cuts = self._cuts(keep)
        module = cut_module(self.module, cuts)
        return self._like(module, keep, cuts)

    def _scales(self, masks: Mapping[str, Tensor]) -> tuple[dict[str, list[Scale]], dict[str, list[Scale]]]:
        """What a mask multiplies: weights by tensor name, and the features that a norm counts by module name."""
        readers: dict[str, list[Scale]] = {}
        norms: dict[str, list[Scale]] = {}
        for place in self._places:
            scales = norms if place.is_norm else readers
            scales.setdefault(place.name, []).append(Scale(place.dim, place.rows, masks[place.group]))
        return readers, norms

    @cached_property
    def _places(self) -> tuple[_Place, ...]:
        """Where masks act. Looked up once: training enters a mask in every step, and large networks have many."""
        places = []
        for group in self._groups:
            if group.name in self.blocks:
                continue
            written = self.factors.get(group.name, frozenset())
            for member in group.members:
                owner_name, tensor = split_name(member.param)
                rows = rows_of(member, group.size)
                if group.name in self.scattered or member.param in written or reads_units(self.module, member):
                    places.append(_Place(member.param, member.dim, rows, group.name))
                elif tensor == "weight" and isinstance(
                    self.module.get_submodule(owner_name), nn.LayerNorm | nn.RMSNorm
                ):
                    places.append(_Place(owner_name, member.dim, rows, group.name, is_norm=True))
        return tuple(places)

    def _cuts(self, keep: Keep) -> Cuts:
        """What goes, in the numbering of the module as it is."""
        tensors = named_tensors(self.module)
        gone = {
            block.module: (kind_of(self.module.get_submodule(block.module)), block)
            for name, units in self.blocks.items()
            for block, kept in zip(units, keep[name].tolist(), strict=True)
            if not kept
        }
        for group_name, block in self.emptied.items():
            if not bool(keep[group_name].any()):
                gone.setdefault(block.module, (kind_of(self.module.get_submodule(block.module)), block))
        stays: dict[tuple[str, int], Tensor] = {}
        for group in self._groups:
            if group.name in self.blocks:
                continue
            lost = ~keep[group.name].cpu()
            for member in group.members:
                size = tensors[member.param].shape[member.dim]
                mask = stays.setdefault((member.param, member.dim), torch.ones(size, dtype=torch.bool))
                mask[rows_of(member, group.size)[lost].flatten()] = False
        rows = {key: Kept(len(mask), mask.nonzero()[:, 0]) for key, mask in stays.items() if not bool(mask.all())}
        scattered = {
            split_name(member.param)[0]
            for group in self._groups
            if group.name in self.scattered and not bool(keep[group.name].all())
            for member in group.members
        }
        return Cuts().then(Cuts(rows, gone, self._recounted(keep), frozenset(scattered)))

    def _recounted(self, keep: Keep) -> dict[tuple[str, str], tuple[int, int]]:
        values: dict[tuple[str, str], tuple[int, int]] = {}
        for count in self.counts:
            lost = int((~keep[count.group]).sum())
            if not lost:
                continue
            key = (count.module, count.attribute)
            value = getattr(self.module.get_submodule(count.module), count.attribute)
            before, now = values.get(key, (value, value))
            values[key] = (before, now - lost * count.per_unit)
        return values

    def _like(self, module: nn.Module, keep: Keep, cuts: Cuts) -> Self:
        """This network's unit map, moved to the cut module."""
        left = {name: block for name, (_, block) in cuts.blocks.items()}
        stays = {group.name: keep[group.name].cpu() for group in self._groups}
        for name, units in self.blocks.items():
            # A block goes with the one that it lies in.
            stays[name] = stays[name] & torch.tensor([not gone_with(block.module, left) for block in units])
        groups = [_moved(group, stays[group.name], cuts) for group in self._groups]
        groups = [group for group in groups if group.size and (group.members or group.name in self.blocks)]
        names = {group.name for group in groups}
        blocks = {
            name: [block for block, kept in zip(units, stays[name].tolist(), strict=True) if kept]
            for name, units in self.blocks.items()
            if name in names
        }
        counts = [count for count in self.counts if count.group in names and not gone_with(f"{count.module}.", left)]
        return type(self)(
            module,
            groups,
            self.example_inputs,
            blocks=blocks,
            counts=counts,
            cuts=self.cuts.then(cuts),
            left_out=self.left_out,
            emptied={name: block for name, block in self.emptied.items() if name in names},
            scattered=self.scattered & names,
            factors={name: parameters for name, parameters in self.factors.items() if name in names},
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a group's mask acts: on rows of the tensor of that name, or on the features that the norm of it counts."""

    name: str
    dim: int
    rows: Tensor
    group: str
    is_norm: bool = False


class _Strength:
    """One entry of a mask, looked up anew in every forward, so that each has a graph of its own."""

    def __init__(self, mask: Tensor, index: int) -> None:
        self.mask = mask
        self.index = index

    def __call__(self) -> Tensor:
        return self.mask[self.index]


def reads_units(module: nn.Module, member: Member) -> bool:
    """Whether a mask can act at this member, because these rows multiply what comes in."""
    owner, tensor = split_name(member.param)
    return reads(module.get_submodule(owner), tensor, member.dim)


def rows_of(member: Member, size: int) -> Tensor:
    """(units, rows per unit) rows of a member, on the CPU."""
    return torch.arange(size)[:, None] if member.rows is None else member.rows.cpu()


def _moved(group: UnitGroup, keep: Tensor, cuts: Cuts) -> UnitGroup:
    """The group after the cut: only kept units, their rows counted anew, nothing that lies in a block that is gone."""
    members = []
    left = {name: block for name, (_, block) in cuts.blocks.items()}
    for member in group.members:
        if gone_with(member.param, left):
            continue
        rows = rows_of(member, group.size)[keep]
        kept = cuts.rows.get((member.param, member.dim))
        if kept is not None:
            renumbered = torch.full((kept.size,), -1)
            renumbered[kept.rows] = torch.arange(len(kept.rows))
            rows = renumbered[rows]
            # A block owns all that is left of its parameters; other units' rows stay or go with those units.
            rows = rows[:, (rows >= 0).all(dim=0)]
        whole = torch.equal(rows, torch.arange(len(rows))[:, None])
        members.append(replace(member, rows=None if whole else rows))
    costs = {name: cost[keep.to(cost.device)] for name, cost in group.cost.items()}
    return replace(group, size=int(keep.sum()), members=tuple(members), cost=costs)


def _check(network: Network) -> None:
    """Raise ValueError for a unit map that does not fit the module."""
    module = network.module
    tensors = named_tensors(module)
    quantised = set(find_quantised(module))
    shared = shared_names(module)
    taken: dict[tuple[str, int], Tensor] = {}
    for group in network._groups:
        where = f"group {group.name!r}"
        if group.size < 1:
            raise ValueError(f"{where} has no units")
        blocks = network.blocks.get(group.name)
        if blocks is not None and len(blocks) != group.size:
            raise ValueError(f"{where} has {group.size} units but {len(blocks)} blocks")
        if blocks is not None and len(blocks) > 1 and group.members:
            raise ValueError(f"{where}: only a group of one block can have members; its costs come from the modules")
        for block in blocks or ():
            _submodule(module, block.module, where)
        for member in group.members:
            _check_member(member, group, tensors)
            owner = split_name(member.param)[0]
            if member.param in shared:
                raise ValueError(f"{where}: {member.param!r} is the same tensor as {shared[member.param]!r}")
            if member.param in quantised or owner in quantised:
                raise ValueError(f"{where}: {member.param!r} is quantised; cut first, quantise afterwards")
            if blocks is None:
                _take_rows(taken, member, group, tensors[member.param].shape[member.dim])
        hides = blocks is not None or group.name in network.scattered or group.name in network.factors
        if not hides and not any(reads_units(module, member) for member in group.members):
            raise ValueError(f"{where}: none of {[m.param for m in group.members]} reads its units, so no mask can act")
    names = {group.name for group in network._groups}
    if len(names) < len(network._groups):
        raise ValueError(f"group names repeat: {sorted(group.name for group in network._groups)}")
    for emptied, block in network.emptied.items():
        _submodule(module, block.module, f"group {emptied!r} once it is empty")
    unknown = (set(network.emptied) | network.scattered | set(network.factors)) - names
    if unknown:
        raise ValueError(
            f"emptied, scattered or factors names no group {sorted(unknown)[0]!r}; there are {sorted(names)}"
        )
    for count in network.counts:
        value = getattr(_submodule(module, count.module, f"count {count.attribute!r}"), count.attribute, None)
        if type(value) is not int or count.group not in names:
            raise ValueError(f"{count} must name an integer attribute and a group, found {value!r} and {sorted(names)}")


def _check_member(member: Member, group: UnitGroup, tensors: Mapping[str, Tensor]) -> None:
    where = f"group {group.name!r}"
    if member.param not in tensors:
        raise ValueError(f"{where}: the module has no parameter or buffer {member.param!r}")
    shape = tensors[member.param].shape
    if not 0 <= member.dim < len(shape):
        raise ValueError(f"{where}: {member.param!r} of shape {tuple(shape)} has no dimension {member.dim}")
    rows = rows_of(member, group.size)
    if rows.dim() != 2 or len(rows) != group.size or rows.dtype != torch.int64:
        raise ValueError(
            f"{where}: rows of {member.param!r} must be int64 ({group.size}, rows per unit), got {tuple(rows.shape)}"
        )
    if rows.numel() and bool(((rows < 0) | (rows >= shape[member.dim])).any()):
        raise ValueError(
            f"{where}: {member.param!r} has {shape[member.dim]} rows, the units own up to {int(rows.max())}"
        )


def _take_rows(taken: dict[tuple[str, int], Tensor], member: Member, group: UnitGroup, size: int) -> None:
    """Note whose rows these are; a row has one owner."""
    used = taken.setdefault((member.param, member.dim), torch.zeros(size, dtype=torch.int64))
    used.index_add_(
        0, rows_of(member, group.size).flatten(), torch.ones(1, dtype=torch.int64).expand(_count(member, group))
    )
    if int(used.max()) > 1:
        row = int(used.argmax())
        raise ValueError(f"group {group.name!r}: row {row} of {member.param!r} (dim {member.dim}) belongs to two units")


def _count(member: Member, group: UnitGroup) -> int:
    return group.size if member.rows is None else member.rows.numel()


def _submodule(module: nn.Module, name: str, where: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{where}: the network has no module {name!r}") from error
