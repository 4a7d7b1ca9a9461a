"""Neurons of feed-forward layers, gated or not, and of the MLP beside a single-stream attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from diffusion.units.heads import is_attention
from secateur.surgery.attention import feed_forward_group
from secateur.surgery.found import Found, LeftOut, counting, linear, named, width
from secateur.surgery.layers import join_name
from secateur.surgery.stand_in import Block


def is_feed_forward(module: nn.Module) -> bool:
    """Whether the module is `net`: a layer that widens (with its activation), dropout, a layer that narrows."""
    return linear(module, "net.0.proj") is not None and linear(module, "net.2") is not None


def is_single_stream(module: nn.Module) -> bool:
    """Whether the module is a block whose one `proj_out` reads an attention's values and then those of an MLP."""
    if linear(module, "proj_mlp") is None or linear(module, "proj_out") is None:
        return False
    attention = module._modules.get("attn")
    if attention is None or not is_attention(attention):
        return False
    return _inner(module) + _mlp(module) == width(module, "proj_out", 1)


def find_neurons(model: nn.Module, min_keep: int = 1) -> Iterator[Found | LeftOut]:
    """Neurons of every feed-forward: a row of what widens, its gate's row in the other half, a column of what narrows.

    GEGLU and SwiGLU hold values in the first half of their rows and gates in the second, so neuron i is rows i and
    n + i.
    """
    for name, module in named(model):
        if is_feed_forward(module):
            yield _neurons(model, name, module, min_keep)
        elif is_single_stream(module):
            inner = _inner(module)
            group = feed_forward_group(
                model,
                join_name(name, "neurons"),
                up=join_name(name, "proj_mlp"),
                down=join_name(name, "proj_out"),
                columns=(inner, inner + _mlp(module)),
            )
            counts = counting(name, module, {"mlp_hidden_dim": group.size}, group.size)
            yield Found(replace(group, min_keep=min_keep), tuple(replace(count, group=group.name) for count in counts))


def _neurons(model: nn.Module, name: str, module: nn.Module, min_keep: int) -> Found | LeftOut:
    up, down = linear(module, "net.0.proj"), linear(module, "net.2")
    assert up is not None and down is not None
    if up.out_features not in (down.in_features, 2 * down.in_features):
        return LeftOut(name, f"{up.out_features} rows that widen do not fit {down.in_features} columns that narrow")
    group = feed_forward_group(
        model,
        join_name(name, "neurons"),
        up=join_name(name, "net.0.proj"),
        down=join_name(name, "net.2"),
        fused_gate=up.out_features == 2 * down.in_features,
    )
    return Found(replace(group, min_keep=min_keep), emptied=feed_forward_block(name, module, bias=True))


def feed_forward_block(name: str, module: nn.Module, *, bias: bool) -> Block | None:
    """The feed-forward as a block that goes whole, its last bias too unless `bias`; None if it changes the width."""
    down = linear(module, "net.2")
    if down is None or down.out_features != width(module, "net.0.proj", 1):
        return None
    return Block(name, biases=("net.2.bias",) if bias and down.bias is not None else ())


def _inner(block: nn.Module) -> int:
    return width(block, "attn.to_q", 0)


def _mlp(block: nn.Module) -> int:
    return width(block, "proj_mlp", 0)
