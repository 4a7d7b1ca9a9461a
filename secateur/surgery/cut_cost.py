"""What a network would cost once it is cut: counted from its unit map, so that nothing has to be cut to know it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from secateur.surgery.layers import join_name, named_tensors, split_name
from secateur.surgery.network import Network
from secateur.surgery.scatter import ScatterLinear
from secateur.surgery.stand_in import Block, gone_with, kept_elements
from secateur.units import Keep, check_keep

Cost = Literal["macs", "params", "bytes"]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A dimension of a tensor: its rows, and how many of them a unit of each group owns."""

    size: int
    owners: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Term:
    """A part of the cost: that of a tensor, or of products between activations.

    Args:
        each: what one combination of rows costs.
        axes: dimensions that units own rows of.
        blocks: (group, unit, share that is left) of blocks that take it along.
        emptied: (group, share that is left) of groups that take it along once they have no units.
        indices: whether it is the index of a layer that keeps its width: it only exists once rows are gone.
    """

    each: float
    axes: tuple[_Axis, ...] = ()
    blocks: tuple[tuple[str, int, float], ...] = ()
    emptied: tuple[tuple[str, float], ...] = ()
    indices: bool = False

    def touched_by(self) -> set[str]:
        """The groups whose units it depends on."""
        owners = {name for axis in self.axes for name, _ in axis.owners}
        return owners | {name for name, *_ in self.blocks} | {name for name, _ in self.emptied}


class CutCost:
    """Multiply-adds, parameters or bytes that `network.cut(keep)` has, exactly as they are counted on it.

    The costs of units say what each saves if it goes alone; what is left of a layer is the product of the inputs and
    outputs that are left, so these do not add up. Here a unit of a group can be kept or dropped at the price of the few
    tensors that it owns rows of: a search needs no cut. A layer that a block holds for others (`Block.held`) counts as
    often as it is called now, so that a cut network may have fewer multiply-adds than this says, and never more.

    Args:
        network: with example inputs where multiply-adds are counted.
        cost: "macs", "params" or "bytes".

    Raises:
        ValueError: there is no such cost, or there are no example inputs.
    """

    def __init__(self, network: Network, cost: str) -> None:
        if cost not in get_args(Cost):
            raise ValueError(f"a cut network's cost is one of {get_args(Cost)}, got {cost!r}")
        self.network = network
        self.sizes = {group.name: group.size for group in network.groups()}
        self.counts = dict(self.sizes)
        self.gone: dict[str, set[int]] = {name: set() for name in network.blocks}
        terms = _terms(network, cost)
        self._terms = [term for term in terms if term.touched_by()]
        self._fixed = sum(self._value(term) for term in terms if not term.touched_by())
        self._by_group: dict[str, list[_Term]] = {name: [] for name in self.sizes}
        for term in self._terms:
            for name in term.touched_by():
                self._by_group[name].append(term)

    def __call__(self, keep: Keep) -> float:
        """The cost of the cut network. It is also what `added` starts from, until the next call.

        Raises:
            ValueError: `keep` does not fit the groups.
        """
        check_keep(keep, self.network.groups())
        for name, mask in keep.items():
            if name in self.counts:
                self.counts[name] = int(mask.sum())
        for name in self.gone:
            self.gone[name] = set(torch.nonzero(~keep[name].cpu())[:, 0].tolist())
        return self._fixed + sum(map(self._value, self._terms))

    def added(self, group: str, unit: int) -> float:
        """What it costs to keep one more unit, which is not kept so far; all units of most groups cost the same."""
        terms = self._by_group[group]
        before = sum(map(self._value, terms))
        self.keep(group, unit)
        after = sum(map(self._value, terms))
        self._drop(group, unit)
        return after - before

    def keep(self, group: str, unit: int) -> None:
        """Count the unit as kept from now on."""
        self.counts[group] += 1
        self.gone.get(group, set()).discard(unit)

    def _drop(self, group: str, unit: int) -> None:
        self.counts[group] -= 1
        if group in self.gone:
            self.gone[group].add(unit)

    def _value(self, term: _Term) -> float:
        value = term.each
        lost = 0
        for axis in term.axes:
            missing = sum(rows * (self.sizes[name] - self.counts[name]) for name, rows in axis.owners)
            lost += missing
            value *= axis.size - missing
        if term.indices and not lost:
            return 0.0
        for name, unit, left in term.blocks:
            if unit in self.gone[name]:
                value *= left
        for name, left in term.emptied:
            if not self.counts[name]:
                value *= left
        return value


def _terms(network: Network, cost: str) -> list[_Term]:
    tensors = named_tensors(network.module)
    if cost != "macs":
        held = {name: t for name, t in tensors.items() if cost == "bytes" or isinstance(t, nn.Parameter)}
        each = {name: float(t.element_size() if cost == "bytes" else 1) for name, t in held.items()}
        return _of_tensors(network, held, each, indexed=cost == "bytes")
    if network.usage is None:
        raise ValueError("multiply-adds need example inputs: give them to the Network")
    products = {name: tensors[name] for name in network.usage.products}
    return _of_tensors(network, products, network.usage.products) + _of_mixing(network, network.usage.mixing)


def _of_tensors(
    network: Network, tensors: Mapping[str, Tensor], each: Mapping[str, float], indexed: bool = False
) -> list[_Term]:
    axes = _axes(network)
    kept_whole = {split_name(name)[0] for name in _scattered(network)}
    terms = []
    for name, tensor in tensors.items():
        layer, last = split_name(name)
        owned = {dim: axes[name, dim] for dim in range(tensor.dim()) if (name, dim) in axes}
        if indexed and last == "rows" and layer in kept_whole:
            owned = {0: axes[join_name(layer, "weight"), 0]}
        rest = prod(size for dim, size in enumerate(tensor.shape) if dim not in owned)
        elements = max(1, tensor.numel())

        def left(block: Block, name: str = name, tensor: Tensor = tensor, elements: int = elements) -> float:
            inside = name.startswith(f"{block.module}.")
            return kept_elements(name, tensor.shape, block) / elements if inside else 1.0

        terms.append(_Term(each[name] * rest, tuple(owned.values()), *_leaving(network, left)))
        plain = not isinstance(network.module.get_submodule(layer), ScatterLinear)
        if indexed and last == "weight" and layer in kept_whole and plain:
            width = float(torch.int64.itemsize)
            terms.append(_Term(width, (axes[name, 0],), *_leaving(network, left), indices=True))
    return terms


def _of_mixing(network: Network, mixing: Mapping[str, float]) -> list[_Term]:
    terms = []
    for name, amount in mixing.items():
        counting = {count.group for count in network.counts if count.module == name}
        sizes = {group.name: group.size for group in network.groups() if group.name in counting}
        heads = tuple(_Axis(size, ((group, 1),)) for group, size in sizes.items())

        def left(block: Block, name: str = name) -> float:
            return 0.0 if gone_with(f"{name}.", {"": block}) else 1.0

        terms.append(_Term(amount / prod(sizes.values()), heads, *_leaving(network, left)))
    return terms


def _leaving(
    network: Network, left: Callable[[Block], float]
) -> tuple[tuple[tuple[str, int, float], ...], tuple[tuple[str, float], ...]]:
    """The blocks, and the groups that take a block along once they are empty, that leave less than all."""
    blocks = ((name, index, left(block)) for name, units in network.blocks.items() for index, block in enumerate(units))
    emptied = ((name, left(block)) for name, block in network.emptied.items())
    return tuple(entry for entry in blocks if entry[2] < 1), tuple(entry for entry in emptied if entry[1] < 1)


def _axes(network: Network) -> dict[tuple[str, int], _Axis]:
    tensors = named_tensors(network.module)
    owners: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for group in network.groups():
        if group.name in network.blocks:
            continue
        for member in group.members:
            rows = 1 if member.rows is None else member.rows.shape[1]
            owners.setdefault((member.param, member.dim), []).append((group.name, rows))
    return {(name, dim): _Axis(tensors[name].shape[dim], tuple(each)) for (name, dim), each in owners.items()}


def _scattered(network: Network) -> Iterable[str]:
    return (m.param for group in network.groups() if group.name in network.scattered for m in group.members)
