"""Whole modules as units: resnets, attentions, feed-forwards, transformer blocks, and stacks of these."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from diffusion.units.feed_forward import feed_forward_block, is_feed_forward, is_single_stream
from diffusion.units.heads import attention_block, is_attention
from diffusion.units.resnets import is_resnet, resnet_block
from secateur.surgery.found import Found, LeftOut, linear, named, part, whole
from secateur.surgery.stand_in import Block


def find_resnets(model: nn.Module, min_keep: int = 0) -> Iterator[Found | LeftOut]:
    """Every resnet that neither resizes nor rescales; it leaves its shortcut."""
    for name, module in named(model):
        if is_resnet(module):
            block = resnet_block(name, module, bias=False)
            yield LeftOut(name, "it resizes or rescales its input") if block is None else whole(model, block)


def find_attentions(model: nn.Module, min_keep: int = 0) -> Iterator[Found | LeftOut]:
    """Every attention whose output is added to a residual; it leaves nothing."""
    for name, module in named(model):
        if is_attention(module):
            block = attention_block(name, module, bias=False)
            reason = "its values are read by a layer beside it, or its output has another width"
            yield LeftOut(name, reason) if block is None else whole(model, block)


def find_feed_forwards(model: nn.Module, min_keep: int = 0) -> Iterator[Found | LeftOut]:
    """Every feed-forward whose output is added to a residual; it leaves nothing."""
    for name, module in named(model):
        if is_feed_forward(module):
            block = feed_forward_block(name, module, bias=False)
            yield LeftOut(name, "its output has another width") if block is None else whole(model, block)


def is_transformer_block(module: nn.Module) -> bool:
    """Whether the module holds attentions and a feed-forward of its own, or is a single-stream block."""
    children = list(module.children())
    both = any(map(is_attention, children)) and any(map(is_feed_forward, children))
    return both or is_single_stream(module)


def find_transformer_blocks(model: nn.Module, min_keep: int = 0) -> Iterator[Found | LeftOut]:
    """Every transformer block, with all its residual branches; it leaves its input.

    Blocks over two streams return (text, image) and leave both. The first block of a DiT holds the embedder of time
    step and class that the model's last layer uses too, so that part stays.
    """
    for name, module in named(model):
        if not is_transformer_block(module):
            continue
        attention = next(child for child in module.children() if is_attention(child))
        arguments: tuple[str, ...] = ()
        if is_single_stream(module) or linear(attention, "add_q_proj") is not None:
            text_ends = not is_single_stream(module) and linear(attention, "to_add_out") is None
            arguments = ("" if text_ends else "encoder_hidden_states", "hidden_states")
        shared = name.endswith(".0") and part(module, "norm1.emb") is not None
        held = ("norm1.emb",) if shared else ()
        yield whole(model, Block(name, "input", max(1, len(arguments)), arguments, held=held))


def is_stack(module: nn.Module) -> bool:
    """Whether the module is projection, transformer blocks, projection, with a residual around all (in UNets)."""
    return all(module._modules.get(name) is not None for name in ("norm", "proj_in", "transformer_blocks", "proj_out"))


def find_stacks(model: nn.Module, min_keep: int = 0) -> Iterator[Found | LeftOut]:
    """Every stack of transformer blocks of a UNet, with its projections; it leaves its input."""
    for name, module in named(model):
        if is_stack(module):
            yield whole(model, Block(name, "input", 1, ("hidden_states",)))
