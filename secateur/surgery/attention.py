"""Unit maps of attention and feed-forward blocks, shared by diffusion models and vision transformers.

A head is a contiguous block of rows of q, k and v and the same block of columns of the output projection; with
grouped queries, a key-value head goes together with the query heads that share it. A feed-forward channel is a row of
what widens (and of the gate beside it) and a column of what narrows. Tracing alone gets these wrong for fused and
gated layers, so they are written down: each function returns a `UnitGroup`, and for heads the `Count`s that go with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.surgery.cut import Count
from secateur.surgery.layers import join_name
from secateur.surgery.stand_in import Block, Leaves
from secateur.units import Member, UnitGroup


def head_group(
    module: nn.Module,
    name: str,
    *,
    q: str,
    k: str,
    v: str,
    out: str,
    heads: int,
    kv_heads: int | None = None,
    counts: Sequence[Count] = (),
) -> tuple[UnitGroup, tuple[Count, ...]]:
    """Heads of an attention whose q, k and v are layers of their own.

    Args:
        module: the network.
        name: name of the group.
        q: qualified name of the query layer, (heads * width) rows; k, v and out likewise.
        k: the key layer, (kv_heads * width) rows.
        v: the value layer, (kv_heads * its width) rows.
        out: the output projection, whose columns are the heads' values.
        heads: number of query heads.
        kv_heads: number of key-value heads, which are then the units; None: as many as there are query heads.
        counts: attributes that count heads; their `group` is set to this group's name.

    Raises:
        ValueError: the rows of a layer do not divide into heads.
    """
    units = heads if kv_heads is None else kv_heads
    if units < 1 or heads % units:
        raise ValueError(f"group {name!r}: {heads} query heads do not divide into {units} key-value heads")
    members = [member for layer in (q, k, v) for member in _rows(module, layer, units, name)]
    members += _columns(module, out, units, name)
    return UnitGroup(name, units, tuple(members)), _named(counts, name)


def fused_head_group(
    module: nn.Module, name: str, *, qkv: str, out: str, heads: int, counts: Sequence[Count] = ()
) -> tuple[UnitGroup, tuple[Count, ...]]:
    """Heads of an attention whose layer `qkv` holds the rows of all queries, then all keys, then all values.

    Raises:
        ValueError: the rows do not divide into heads.
    """
    members = [*_rows(module, qkv, heads, name, parts=3), *_columns(module, out, heads, name)]
    return UnitGroup(name, heads, tuple(members)), _named(counts, name)


def joint_head_group(
    module: nn.Module,
    name: str,
    *,
    rows: Sequence[tuple[str, int]],
    columns: Sequence[tuple[str, int, int]],
    heads: int,
    norms: Sequence[str] = (),
    counts: Sequence[Count] = (),
) -> tuple[UnitGroup, tuple[Count, ...]]:
    """Heads of an attention over several streams, or of one whose values are read together with others.

    Args:
        module: the network.
        name: name of the group.
        rows: (layer, parts): each layer that writes heads, and how many runs of all heads follow one another in it (3
            for queries, keys and values in one).
        columns: (layer, first, last + 1): each layer that reads the heads' values, and which of its columns these are.
        heads: number of units.
        norms: layers that norm all heads together, so that a mask has to count in them.
        counts: attributes that count heads; their `group` is set to this group's name.

    Raises:
        ValueError: the rows or columns of a layer do not divide into heads.
    """
    members = [member for layer, parts in rows for member in _rows(module, layer, heads, name, parts)]
    for layer in norms:
        members += _rows(module, layer, heads, name)
    for layer, first, end in columns:
        members.append(Member(join_name(layer, "weight"), 1, _run(first, end, heads, f"group {name!r}: {layer}")))
    return UnitGroup(name, heads, tuple(members)), _named(counts, name)


def multihead_attention_group(module: nn.Module, name: str) -> tuple[UnitGroup, tuple[Count, ...]]:
    """Heads of the `nn.MultiheadAttention` (or `SlimAttention`) of that name; once cut, it is a `SlimAttention`.

    Raises:
        ValueError: it has other widths for keys and values, or learnt or zero keys beside the tokens.
    """
    attention = module.get_submodule(name)
    if attention.in_proj_weight is None or getattr(attention, "bias_k", None) is not None:
        raise ValueError(f"{name}: heads are cut only where q, k and v share a width and no key is added")
    heads: int = attention.num_heads  # type: ignore[assignment]
    count = Count(name, "num_heads", name)
    rows = _split(len(attention.in_proj_weight), heads, name, parts=3)  # type: ignore[arg-type]
    members = [Member(join_name(name, "in_proj_weight"), 0, rows)]
    if attention.in_proj_bias is not None:
        members.append(Member(join_name(name, "in_proj_bias"), 0, rows))
    members += _columns(module, join_name(name, "out_proj"), heads, name)
    return UnitGroup(name, heads, tuple(members)), (count,)


def feed_forward_group(
    module: nn.Module,
    name: str,
    *,
    up: str,
    down: str,
    gate: str | None = None,
    fused_gate: bool = False,
    columns: tuple[int, int] | None = None,
) -> UnitGroup:
    """Channels between the layers that widen and narrow a stream.

    Args:
        module: the network.
        name: name of the group.
        up: the layer that widens.
        down: the layer that narrows.
        gate: the layer whose output gates that of `up` (SwiGLU of LLaMA and DINOv2), if it is one of its own.
        fused_gate: `up` holds the gate's rows too, in the other half (GEGLU of diffusers, packed SwiGLU).
        columns: (first, last + 1) of the columns of `down` that read the channels; None: all of them.

    Raises:
        ValueError: the layers' widths do not agree.
    """
    first, end = columns or (0, int(_layer(module, down).weight.shape[1]))
    size = end - first
    parts = 2 if fused_gate else 1
    members = []
    for layer in (up, gate):
        if layer is not None:
            members += _rows(module, layer, size, name, parts=parts, width=1)
    read = None if columns is None else _run(first, end, size, f"group {name!r}: {down}")
    members.append(Member(join_name(down, "weight"), 1, read))
    return UnitGroup(name, size, tuple(members))


def block_group(
    module: nn.Module, name: str, block: str, *, leaves: Leaves = "nothing", outputs: int = 1
) -> tuple[UnitGroup, dict[str, tuple[Block, ...]]]:
    """A whole block as a group of one unit, which may go: the group, and the `Network`'s entry for `blocks`.

    A branch that lost all its heads or channels still adds the bias of its last layer; a branch that is cut as a block
    adds nothing.
    """
    members = tuple(
        Member(join_name(block, tensor), 0, torch.arange(len(parameter))[None])
        for tensor, parameter in module.get_submodule(block).named_parameters()
        if parameter.dim()
    )
    return UnitGroup(name, 1, members, min_keep=0), {name: (Block(block, leaves, outputs),)}


def _named(counts: Sequence[Count], group: str) -> tuple[Count, ...]:
    return tuple(Count(count.module, count.attribute, group, count.per_unit) for count in counts)


def _layer(module: nn.Module, name: str) -> nn.Linear:
    try:
        return module.get_submodule(name)  # type: ignore[return-value]
    except AttributeError as error:
        raise ValueError(f"the network has no layer {name!r}") from error


def _rows(
    module: nn.Module, layer: str, units: int, group: str, parts: int = 1, width: int | None = None
) -> list[Member]:
    linear = _layer(module, layer)
    rows = _split(len(linear.weight), units, f"group {group!r}: {layer}", parts, width)
    members = [Member(join_name(layer, "weight"), 0, rows)]
    if linear.bias is not None:
        members.append(Member(join_name(layer, "bias"), 0, rows))
    return members


def _columns(module: nn.Module, layer: str, units: int, group: str) -> list[Member]:
    columns = _layer(module, layer).weight.shape[1]
    return [Member(join_name(layer, "weight"), 1, _split(columns, units, f"group {group!r}: {layer}"))]


def _run(first: int, end: int, units: int, where: str) -> Tensor:
    """(units, width) rows of the contiguous blocks between `first` and `end`."""
    return _split(end - first, units, where) + first


def _split(size: int, units: int, where: str, parts: int = 1, width: int | None = None) -> Tensor:
    """(units, parts * width) rows: `parts` runs of equal length, each cut into contiguous blocks, one a unit."""
    each = size // (units * parts) if width is None else width
    if units < 1 or each < 1 or each * units * parts != size:
        raise ValueError(f"{where}: {size} rows do not divide into {parts} times {units} units")
    blocks = torch.arange(size).reshape(parts, units, each)
    return blocks.transpose(0, 1).reshape(units, parts * each)
