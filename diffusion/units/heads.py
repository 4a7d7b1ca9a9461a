"""Attention heads, found by the projections that an attention holds, whatever its class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from diffusion.units.found import Found, LeftOut, counting, integer, linear, named, part
from secateur.surgery.attention import joint_head_group
from secateur.surgery.layers import join_name

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
    inner = attention.to_q.out_features  # type: ignore[union-attr]
    if inner % heads:
        return LeftOut(name, f"{inner} rows of to_q do not divide into {heads} heads")
    width = inner // heads
    inner_kv = attention.to_k.out_features  # type: ignore[union-attr]
    if inner_kv != inner:
        return LeftOut(name, f"keys of {inner_kv} rows are shared by queries of {inner}")
    columns = readers(model, name, attention)
    if not columns:
        return LeftOut(name, "no layer is known that reads its values")
    norms = []
    for norm in _NORMS:
        layer = part(attention, norm)
        weight = getattr(layer, "weight", None)
        if layer is None or (weight is not None and weight.shape[-1] == width) or heads == 1:
            continue
        if not isinstance(layer, nn.LayerNorm | nn.RMSNorm) or weight is None:
            return LeftOut(name, f"{norm} norms all heads together")
        norms.append(join_name(name, norm))
    values = {"heads": heads, "sliceable_head_dim": heads, "inner_dim": inner, "inner_kv_dim": inner_kv}
    group, counts = joint_head_group(
        model,
        join_name(name, "heads"),
        rows=[(join_name(name, layer), parts) for layer, parts in writers(attention)],
        columns=columns,
        heads=heads,
        norms=norms,
        counts=counting(name, attention, values, heads),
    )
    return Found(replace(group, min_keep=min_keep), counts)


def writers(attention: nn.Module) -> list[tuple[str, int]]:
    """(layer, runs of all heads in it) of each projection that the attention holds, fused ones too."""
    single = [(layer, 1) for layer in (*_QUERIES, *_KEYS, *_VALUES)]
    return [(layer, parts) for layer, parts in (*single, *_FUSED) if linear(attention, layer) is not None]


def readers(model: nn.Module, name: str, attention: nn.Module) -> list[tuple[str, int, int]]:
    """(layer, first column, last + 1) of each layer that reads the heads' values."""
    inner = attention.to_q.out_features  # type: ignore[union-attr]
    own = [layer for layer in _OUTPUTS if linear(attention, layer) is not None]
    if own:
        return [(join_name(name, layer), 0, inner) for layer in own]
    block_name = name.rpartition(".")[0]
    block = model.get_submodule(block_name)
    mlp, out = linear(block, "proj_mlp"), linear(block, "proj_out")
    if mlp is None or out is None or out.in_features != inner + mlp.out_features:
        return []
    return [(join_name(block_name, "proj_out"), 0, inner)]
