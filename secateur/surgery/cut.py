"""Cutting: a smaller copy of a module, made from the rows of its tensors that stay."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from secateur.surgery.layers import join_name, named_tensors, refresh, split_name
from secateur.surgery.scatter import ScatterLinear
from secateur.surgery.selecting import Channels, gather, scatter
from secateur.surgery.slim_attention import SlimAttention
from secateur.surgery.stand_in import Block, gone_with, kind_of, stand_in


@dataclass(frozen=True, slots=True)
class Count:
    """An integer attribute of a module that counts units, such as `heads`, and has to follow the cut.

    Args:
        module: qualified name of the module.
        attribute: name of the attribute.
        group: the group whose units it counts.
        per_unit: by how much each unit raises it.
    """

    module: str
    attribute: str
    group: str
    per_unit: int = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows of a dense tensor's dimension that stay.

    Args:
        size: rows that the dense tensor has.
        rows: (kept,) none of them twice; in ascending order unless the units were reordered.
    """

    size: int
    rows: Int64[Tensor, " kept"]


@dataclass(frozen=True, slots=True)
class Cuts:
    """All that was cut from a dense module, in the dense module's own numbering.

    Args:
        rows: (tensor name, dimension) -> the rows that stay; dimensions that lost nothing are absent.
        blocks: name of a module that is gone -> what it was, by class name, and what it leaves.
        attributes: (module, attribute) -> its value in the dense module, and now.
        scattered: linear layers that keep their width without the outputs whose rows are gone: those are 0.
        gathers: layer -> the channels that it alone reads of those that come in, in the cut module's numbering.
        scatters: module -> the channels that it alone writes of a wider output, in the cut module's numbering.
    """

    rows: Mapping[tuple[str, int], Kept] = field(default_factory=dict)
    blocks: Mapping[str, tuple[str, Block]] = field(default_factory=dict)
    attributes: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    scattered: frozenset[str] = frozenset()
    gathers: Mapping[str, Channels] = field(default_factory=dict)
    scatters: Mapping[str, Channels] = field(default_factory=dict)

    def then(self, later: Cuts) -> Cuts:
        """Both cuts as one, where `later` counts in what this one left."""
        rows = dict(self.rows)
        for key, kept in later.rows.items():
            before = rows.get(key)
            rows[key] = kept if before is None else Kept(before.size, before.rows[kept.rows])
        blocks = dict(self.blocks) | dict(later.blocks)
        attributes = dict(self.attributes)
        for name, (before_value, now) in later.attributes.items():
            attributes[name] = (attributes.get(name, (before_value, 0))[0], now)
        left = {name: block for name, (_, block) in blocks.items()}
        return Cuts(
            {key: kept for key, kept in rows.items() if not gone_with(key[0], left)},
            {name: gone for name, gone in blocks.items() if not gone_with(name, left)},
            {key: value for key, value in attributes.items() if not gone_with(f"{key[0]}.", left)},
            frozenset(name for name in self.scattered | later.scattered if not gone_with(f"{name}.", left)),
            {**self.gathers, **later.gathers},
            {**self.scatters, **later.scatters},
        )


def cut_module(module: nn.Module, cuts: Cuts) -> nn.Module:
    """A smaller copy of `module`; the module itself is left as it is, and the rows that go are never copied.

    Works on any device, the meta device included. Layers of torch get the attributes that their new shapes demand, and
    `nn.MultiheadAttention` that loses heads or inputs becomes a `SlimAttention`.

    Args:
        module: the dense module.
        cuts: what goes; names that the module lacks are an error.

    Raises:
        ValueError: the cut leaves a layer in a shape that it cannot have.
    """
    tensors = named_tensors(module)
    memo: dict[int, Any] = {}
    touched: dict[str, None] = {}
    for name, dims in _by_tensor(cuts).items():
        tensor = tensors[name]
        memo[id(tensor)] = _sliced(tensor, dims)
        touched[split_name(name)[0]] = None
    # Blocks within what another block leaves come first, so that it is copied with them.
    for name, (_, block) in sorted(cuts.blocks.items(), reverse=True):
        dense = module.get_submodule(name)
        memo[id(dense)] = copy.deepcopy(stand_in(dense, block), memo)
    smaller = copy.deepcopy(module, memo)
    for name in touched:
        refresh(_exchanged(smaller, name, cuts), name)
    for (name, attribute), (_, now) in cuts.attributes.items():
        setattr(smaller.get_submodule(name), attribute, now)
    for name, channels in cuts.gathers.items():
        gather(smaller.get_submodule(name), channels)
    for name, channels in cuts.scatters.items():
        scatter(smaller.get_submodule(name), channels)
    return smaller


def _by_tensor(cuts: Cuts) -> dict[str, dict[int, Kept]]:
    tensors: dict[str, dict[int, Kept]] = {}
    for (name, dim), kept in cuts.rows.items():
        tensors.setdefault(name, {})[dim] = kept
    return tensors


def _sliced(tensor: Tensor, dims: Mapping[int, Kept]) -> Tensor:
    sliced = tensor.detach()
    for dim, kept in dims.items():
        sliced = sliced.index_select(dim, kept.rows.to(sliced.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(sliced, requires_grad=tensor.requires_grad)
    return sliced


def _exchanged(module: nn.Module, name: str, cuts: Cuts) -> nn.Module:
    """The layer of that name, which is another one now if it cannot hold its class's form with the rows it has."""
    layer = module.get_submodule(name)
    if name in cuts.scattered:
        kept = cuts.rows[(join_name(name, "weight"), 0)]
        return _replaced(module, name, ScatterLinear.of(layer, kept.rows))
    projected = [cuts.rows.get((join_name(name, "in_proj_weight"), dim)) for dim in (0, 1)]
    narrower = any(kept is not None and len(kept.rows) < kept.size for kept in projected)
    if not isinstance(layer, nn.MultiheadAttention) or not narrower:
        return layer
    return _replaced(module, name, SlimAttention.like(layer))


def _replaced(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    parent, child = split_name(name)
    if not name:
        raise ValueError(f"a {kind_of(module)} that is the whole network cannot lose these units; wrap it in a module")
    setattr(module.get_submodule(parent), child, layer)
    return layer
