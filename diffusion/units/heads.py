"""Attention heads, found by the projections that an attention holds, whatever its class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from secateur.surgery.attention import joint_head_group
from secateur.surgery.found import Found, LeftOut, counting, integer, linear, named, part, width
from secateur.surgery.layers import join_name
from secateur.surgery.stand_in import Block, Leaves

_QUERIES = ("to_q", "add_q_proj")
_KEYS = ("to_k", "add_k_proj", "to_k_ip")
_VALUES = ("to_v", "add_v_proj", "to_v_ip")
_FUSED = (("to_qkv", 3), ("to_added_qkv", 3), ("to_kv", 2))
_OUTPUTS = ("to_out.0", "to_add_out")
_NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


def is_attention(module: nn.Module) -> bool:
    """Whether the module holds a query, key and value projection and counts its heads."""
    return all(linear(module, layer) is not None for layer in ("to_q", "to_k", "to_v")) and bool(
        integer(module, "heads")
    )


def find_heads(model: nn.Module, min_keep: int = 1) -> Iterator[Found | LeftOut]:
    """Heads of every attention: rows of what writes queries, keys and values, columns of what reads the mixed values.

    Head h is rows [h d, (h + 1) d) of each projection; a head goes whole, because attention divides its logits by
    sqrt(d). A single-stream block of Flux reads the values in its own `proj_out`, beside those of its MLP.
    """
    for name, attention in named(model):
        if is_attention(attention):
            yield _heads(model, name, attention, min_keep)


def _heads(model: nn.Module, name: str, attention: nn.Module, min_keep: int) -> Found | LeftOut:
    heads = integer(attention, "heads") or 1
    inner, inner_kv = width(attention, "to_q", 0), width(attention, "to_k", 0)
    if inner % heads:
        return LeftOut(name, f"{inner} rows of to_q do not divide into {heads} heads")
    if inner_kv != inner:
        return LeftOut(name, f"keys of {inner_kv} rows are shared by queries of {inner}")
    columns = readers(model, name, attention)
    if not columns:
        return LeftOut(name, "no layer is known that reads its values")
    norms = [norm for norm in _NORMS if heads > 1 and _norms_all_heads(attention, norm, inner // heads)]
    foreign = [norm for norm in norms if not isinstance(part(attention, norm), nn.LayerNorm | nn.RMSNorm)]
    if foreign:
        return LeftOut(name, f"{foreign[0]} norms all heads together")
    values = {"heads": heads, "sliceable_head_dim": heads, "inner_dim": inner, "inner_kv_dim": inner_kv}
    group, counts = joint_head_group(
        model,
        join_name(name, "heads"),
        rows=[(join_name(name, layer), parts) for layer, parts in writers(attention)],
        columns=columns,
        heads=heads,
        norms=[join_name(name, norm) for norm in norms],
        counts=counting(name, attention, values, heads),
    )
    emptied = attention_block(name, attention, bias=True)
    floor = max(min_keep, 0 if emptied is not None else 1)
    return Found(replace(group, min_keep=floor), counts, emptied=emptied)


def _norms_all_heads(attention: nn.Module, norm: str, head_width: int) -> bool:
    """Whether a norm of queries or keys has statistics over all heads, rather than the same weights for each."""
    layer = part(attention, norm)
    weight = getattr(layer, "weight", None)
    return layer is not None and (weight is None or weight.shape[-1] != head_width)


def attention_block(name: str, attention: nn.Module, *, bias: bool) -> Block | None:
    """The attention as a block that goes whole, or None where what it leaves is not known.

    It leaves nothing, since the residual is added outside; those of unconditional UNets add it themselves, so they
    leave their input. Attention over two streams (SD3, Flux) returns both. Where nothing but the block's own `proj_out`
    reads the values (single-stream Flux), features of width 0 are left, which fits only if the columns go too.

    Args:
        name: its qualified name.
        attention: the attention.
        bias: whether the biases of its output layers stay: those of an attention that lost its heads one by one.
    """
    if linear(attention, "to_out.0") is None:
        return Block(name, "empty") if bias and linear(attention, "to_add_out") is None else None
    if width(attention, "to_out.0", 0) != width(attention, "to_q", 1):
        return None
    residual = getattr(attention, "residual_connection", False)
    if residual and getattr(attention, "rescale_output_factor", 1.0) != 1.0:
        return None
    arguments: tuple[str, ...] = ()
    outputs = ["to_out.0"]
    if linear(attention, "add_q_proj") is not None:
        context = linear(attention, "to_add_out") is not None
        if context and width(attention, "to_add_out", 0) != width(attention, "add_q_proj", 1):
            return None
        arguments = ("hidden_states", "encoder_hidden_states" if context else "")
        outputs.append("to_add_out" if context else "")
    biases = tuple(f"{output}.bias" if _has_bias(attention, output) else "" for output in outputs)
    leaves: Leaves = "input" if residual else "nothing"
    return Block(name, leaves, max(1, len(arguments)), arguments, biases=biases if bias and any(biases) else ())


def _has_bias(module: nn.Module, layer: str) -> bool:
    found = linear(module, layer) if layer else None
    return found is not None and found.bias is not None


def writers(attention: nn.Module) -> list[tuple[str, int]]:
    """(layer, runs of all heads in it) of each projection that the attention holds, fused ones too."""
    single = [(layer, 1) for layer in (*_QUERIES, *_KEYS, *_VALUES)]
    return [(layer, parts) for layer, parts in (*single, *_FUSED) if linear(attention, layer) is not None]


def readers(model: nn.Module, name: str, attention: nn.Module) -> list[tuple[str, int, int]]:
    """(layer, first column, last + 1) of each layer that reads the heads' values."""
    inner = width(attention, "to_q", 0)
    own = [layer for layer in _OUTPUTS if linear(attention, layer) is not None]
    if own:
        return [(join_name(name, layer), 0, inner) for layer in own]
    block_name = name.rpartition(".")[0]
    block = model.get_submodule(block_name)
    mlp = width(block, "proj_mlp", 0)
    if not mlp or width(block, "proj_out", 1) != inner + mlp:
        return []
    return [(join_name(block_name, "proj_out"), 0, inner)]
