"""Cutting: a smaller copy of a module, made from the rows of its tensors that stay."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from secateur.surgery.layers import join_name, named_tensors, refresh, split_name
from secateur.surgery.slim_attention import SlimAttention

Leaves = Literal["nothing", "input"]
"""What a block that was cut out leaves: zeros (a branch that is added), or its input (a whole residual block)."""


@dataclass(frozen=True, slots=True)
class Block:
    """A module that goes as a whole, its last bias too.

    Args:
        module: its qualified name.
        leaves: what stands in its place once it is gone.
        outputs: 1 where the module returns a tensor; the length of the tuple where it returns one, whose first entry
            counts (the others become None).
    """

    module: str
    leaves: Leaves = "nothing"
    outputs: int = 1


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


class Gone(nn.Module):
    """What stands in the place of a block that was cut out: it returns zeros, or what it was given first."""

    def __init__(self, leaves: Leaves, outputs: int = 1) -> None:
        super().__init__()
        self.leaves = leaves
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument, or zeros like it; in a tuple padded with None where the block returned one."""
        first = first_input(args, kwargs)
        left = first if self.leaves == "input" else torch.zeros_like(first)
        return left if self.outputs == 1 else (left, *[None] * (self.outputs - 1))

    def extra_repr(self) -> str:
        return f"leaves={self.leaves!r}"


def kind_of(module: nn.Module) -> str:
    """The class name that the module had when it was dense."""
    return nn.MultiheadAttention.__name__ if isinstance(module, SlimAttention) else type(module).__name__


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The first positional argument, or the first by name."""
    return args[0] if args else next(iter(kwargs.values()))


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
    """

    rows: Mapping[tuple[str, int], Kept] = field(default_factory=dict)
    blocks: Mapping[str, tuple[str, Block]] = field(default_factory=dict)
    attributes: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

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
        return Cuts(
            {key: kept for key, kept in rows.items() if not inside(key[0], blocks)},
            {name: gone for name, gone in blocks.items() if not inside(name, blocks)},
            {key: value for key, value in attributes.items() if not inside(f"{key[0]}.", blocks)},
        )


def inside(name: str, blocks: Mapping[str, Any]) -> bool:
    """Whether a tensor or module of that name lies in one of the blocks."""
    return any(name.startswith(f"{block}.") for block in blocks)


def cut_module(module: nn.Module, cuts: Cuts) -> nn.Module:
    """A smaller copy of `module`; the module itself is left as it is, and the rows that go are never copied.

    Works on any device, the meta device included. Layers of torch get the attributes that their new shapes demand, and
    `nn.MultiheadAttention` that loses heads becomes a `SlimAttention`.

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
    for name, (_, block) in cuts.blocks.items():
        gone = Gone(block.leaves, block.outputs)
        memo[id(module.get_submodule(name))] = gone.train(module.get_submodule(name).training)
    smaller = copy.deepcopy(module, memo)
    for name in touched:
        refresh(_slim(smaller, name, cuts), name)
    for (name, attribute), (_, now) in cuts.attributes.items():
        setattr(smaller.get_submodule(name), attribute, now)
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


def _slim(module: nn.Module, name: str, cuts: Cuts) -> nn.Module:
    """The layer of that name, which is another one now if it was an attention that lost heads."""
    layer = module.get_submodule(name)
    kept = cuts.rows.get((join_name(name, "in_proj_weight"), 0))
    if not isinstance(layer, nn.MultiheadAttention) or kept is None or len(kept.rows) == kept.size:
        return layer
    slim = SlimAttention.like(layer)
    parent, child = split_name(name)
    if not name:
        raise ValueError("an nn.MultiheadAttention that is the whole network cannot lose heads; wrap it in a module")
    setattr(module.get_submodule(parent), child, slim)
    return slim
