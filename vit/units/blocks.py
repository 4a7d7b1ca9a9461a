"""Whole modules as units: attentions, feed-forwards, and layers with both."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from secateur.surgery.found import Found, LeftOut, integer, whole
from secateur.surgery.layers import split_name
from secateur.surgery.stand_in import Block
from vit.units.feed_forward import feed_forward_block
from vit.units.heads import attention_block
from vit.units.layouts import attention_of, attentions, feed_forwards, layers


def find_attentions(model: nn.Module, min_keep: int = 0) -> Iterator[Found | LeftOut]:
    """Every attention whose output is added to a residual; it leaves nothing."""
    for attention in attentions(model):
        block = attention_block(model, attention, bias=False)
        yield LeftOut(attention.name, "its output has another width") if block is None else whole(model, block)


def find_feed_forwards(model: nn.Module, min_keep: int = 0) -> Iterator[Found | LeftOut]:
    """Every feed-forward that is a module of its own and whose output is added to a residual; it leaves nothing."""
    for feed_forward in feed_forwards(model):
        block = feed_forward_block(model, feed_forward, bias=False)
        if not feed_forward.whole:
            yield LeftOut(feed_forward.name, "its layers are no module of their own; take its neurons instead")
        else:
            yield LeftOut(feed_forward.name, "its output has another width") if block is None else whole(model, block)


def find_blocks(model: nn.Module, min_keep: int = 0) -> Iterator[Found | LeftOut]:
    """Every layer of a list, with all its residual branches; it leaves its input."""
    for layer in layers(model):
        if not layer.listed:
            yield LeftOut(layer.name, "it is no entry of a list that is run in a row")
            continue
        held = model.get_submodule(layer.name).named_children()
        if sum(attention_of(child, module) is not None for child, module in held) > 1:
            yield LeftOut(layer.name, "it attends to more than its own stream")
            continue
        name, index = split_name(layer.name)
        owner = split_name(name)[0]
        if index == "0" and isinstance(model.get_submodule(owner), nn.TransformerEncoder):
            yield LeftOut(layer.name, "nn.TransformerEncoder asks its first layer how batches lie")
            continue
        # A layer of shifted windows (Swin) returns its output and the attention's weights, others their output.
        shifted = integer(model.get_submodule(layer.name), "shift_size") is not None
        yield whole(model, Block(layer.name, "input", outputs=2 if shifted else 1))
