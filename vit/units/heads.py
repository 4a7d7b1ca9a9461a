"""Attention heads: whole ones, or the same dimension in all heads of an attention."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.surgery.attention import joint_head_group, multihead_attention_group
from secateur.surgery.cut import Count
from secateur.surgery.found import Found, LeftOut, counting, integer, width
from secateur.surgery.layers import join_name, split_name
from secateur.surgery.stand_in import Block
from secateur.units import Member, UnitGroup
from vit.units.fixed_width import fixes_width
from vit.units.layouts import TABLE, Attention, attentions, heads_attributes

_SHARED = ("rel_pos_h", "rel_pos_w")


def find_heads(model: nn.Module, min_keep: int = 1) -> Iterator[Found | LeftOut]:
    """Heads of every attention: rows of queries, keys and values, columns of what reads the mixed values.

    A column of a table of relative position biases (Swin, BEiT) goes with its head; SAM's tables are shared by all
    heads, so they stay. A head goes whole, and the logits keep their scale.
    """
    for attention in attentions(model):
        yield _heads(model, attention, min_keep)


def _heads(model: nn.Module, attention: Attention, min_keep: int) -> Found | LeftOut:
    name, module = attention.name, model.get_submodule(attention.name)
    group_name = join_name(name, "heads")
    emptied = attention_block(model, attention, bias=True)
    if attention.projections == "multihead":
        try:
            group, _ = multihead_attention_group(model, name)
        except ValueError as error:
            return LeftOut(name, str(error))
        renamed = replace(group, name=group_name, min_keep=_floor(min_keep, emptied))
        return Found(renamed, (Count(name, "num_heads", group_name),), emptied=emptied)
    reason = _mismatch(model, attention)
    if reason:
        return LeftOut(name, reason)
    inner = attention.heads * attention.head_dim
    group, counts = joint_head_group(
        model,
        group_name,
        rows=[(layer, 3 if attention.projections == "fused" else 1) for layer in attention.inputs],
        columns=[(attention.out, 0, inner)],
        heads=attention.heads,
        counts=counting(
            name,
            module,
            heads_attributes(module, attention.heads) | {"all_head_size": inner, "attn_dim": inner},
            attention.heads,
        ),
    )
    fused = attention.projections == "fused"
    if fused and fixes_width(module, name, group, counts, _given(model, attention)):
        return LeftOut(name, "its forward fixes the width of all heads together: give it the width that is left")
    members = (*group.members, *(Member(table, 1) for table in _tables(model, attention)))
    # A table beside the attention makes biases even for an attention that is gone.
    beside = any(not table.startswith(f"{name}.") for table in _tables(model, attention))
    floor = max(_floor(min_keep, emptied), 1 if beside else 0)
    return Found(replace(group, members=members, min_keep=floor), counts, emptied=emptied)


def _floor(min_keep: int, emptied: Block | None) -> int:
    return max(min_keep, 0 if emptied is not None else 1)


def _tables(model: nn.Module, attention: Attention) -> list[str]:
    """Tables with a column a head, in the attention or beside it in its layer."""
    layer = split_name(attention.name)[0]
    return [
        join_name(layer, name)
        for name, parameter in model.get_submodule(layer).named_parameters()
        if split_name(name)[1] == TABLE and parameter.dim() == 2 and parameter.shape[1] == attention.heads
    ]


def _shared_table(model: nn.Module, attention: Attention) -> str:
    """A table of biases that the attention shares with those of other layers; "" if there is none."""
    layer = split_name(attention.name)[0]
    around = {layer[:end] for end in range(len(layer)) if layer[end] == "."} | {""}
    tables = (name for name, _ in model.named_parameters() if split_name(name)[1] == TABLE)
    return next((name for name in tables if layer and split_name(split_name(name)[0])[0] in around), "")


def _mismatch(model: nn.Module, attention: Attention) -> str:
    """Why the heads of an attention with linear projections cannot be cut; "" if they can."""
    module = model.get_submodule(attention.name)
    inner = attention.heads * attention.head_dim
    rows = {width(model, layer, 0) for layer in attention.inputs}
    if rows != {inner * (3 if attention.projections == "fused" else 1)} or width(model, attention.out, 1) != inner:
        return f"its projections have {sorted(rows)} rows, which are not those of {attention.heads} heads for each"
    shared_table = _shared_table(model, attention)
    if shared_table:
        return f"{shared_table} has a column for a head of every layer"
    known = {join_name(layer, tensor) for layer in (*attention.inputs, attention.out) for tensor in ("weight", "bias")}
    known |= set(_tables(model, attention))
    for tensor, parameter in module.named_parameters():
        last = split_name(tensor)[1]
        shared = parameter.shape[-1] == attention.head_dim and (last in _SHARED or "norm" in tensor)
        if join_name(attention.name, tensor) not in known and not shared:
            return f"it is not known which of {tensor} belongs to a head"
    return ""


def attention_block(model: nn.Module, attention: Attention, *, bias: bool) -> Block | None:
    """The attention as a block that goes whole and leaves nothing, since the residual is added outside.

    Args:
        model: the model.
        attention: one of its attentions.
        bias: whether the bias of its output layer stays: that of an attention that lost its heads one by one.

    Returns:
        None if its output has another width than its input.
    """
    out = model.get_submodule(attention.out)
    assert isinstance(out, nn.Linear)
    if out.out_features != _given(model, attention):
        return None
    outputs = 2 if attention.pair else 1
    own = attention.out[len(attention.name) + 1 :]
    biases = (f"{own}.bias", *[""] * (outputs - 1)) if bias and out.bias is not None else ()
    return Block(attention.name, outputs=outputs, biases=biases, features_last=any(biases))


def _given(model: nn.Module, attention: Attention) -> int:
    """Features of the stream that the attention reads."""
    if attention.inputs:
        return width(model, attention.inputs[0], 1)
    projection = model.get_parameter(join_name(attention.name, "in_proj_weight"))
    return projection.shape[1]


def find_head_dims(model: nn.Module, min_keep: int = 1) -> Iterator[Found | LeftOut]:
    """Dimensions of heads, the same in every head of an attention, which has one width for all of them.

    Unit i is dimension i of every query, key and value. The logits keep the scale that the attention was trained with:
    its `scaling` stays, and only `head_dim` follows. A dimension of the queries meets the keys' in a product, so a mask
    hides it where it is written.
    """
    for attention in attentions(model):
        yield _head_dims(model, attention, min_keep)


def _head_dims(model: nn.Module, attention: Attention, min_keep: int) -> Found | LeftOut:
    module = model.get_submodule(attention.name)
    reason = _mismatch(model, attention) if attention.projections == "separate" else ""
    if attention.projections != "separate" or integer(module, "head_dim") is None or not hasattr(module, "scaling"):
        reason = "it scales its logits by the width that is left, or views its heads by another than `head_dim`"
    elif any("norm" in tensor for tensor, _ in module.named_parameters()):
        reason = "it norms queries and keys over the dimensions of a head"
    elif {"position_embeddings", "rotary_pos_emb"} & set(inspect.signature(module.forward).parameters):
        reason = "it rotates pairs of dimensions by their position"
    if reason:
        return LeftOut(attention.name, reason)
    rows = _by_dim(attention)
    members = []
    for layer in attention.inputs:
        members += [Member(tensor, 0, rows) for tensor in _tensors(model, layer)]
    members.append(Member(join_name(attention.out, "weight"), 1, rows))
    name = join_name(attention.name, "head_dims")
    group = UnitGroup(name, attention.head_dim, tuple(members), min_keep=max(1, min_keep))
    queries = tuple(_tensors(model, attention.inputs[0]))
    return Found(group, (Count(attention.name, "head_dim", name),), factors=queries)


def _by_dim(attention: Attention) -> Tensor:
    """(head_dim, heads) rows of each dimension."""
    return torch.arange(attention.heads * attention.head_dim).reshape(attention.heads, -1).T.contiguous()


def _tensors(model: nn.Module, layer: str) -> list[str]:
    found = model.get_submodule(layer)
    return [join_name(layer, tensor) for tensor, _ in found.named_parameters(recurse=False)]
