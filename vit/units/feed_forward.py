"""Neurons of feed-forward layers, gated or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from secateur.surgery.attention import feed_forward_group
from secateur.surgery.found import Found, LeftOut, width
from secateur.surgery.layers import join_name, split_name
from secateur.surgery.stand_in import Block
from vit.units.layouts import FeedForward, layers


def find_neurons(model: nn.Module, min_keep: int = 1) -> Iterator[Found | LeftOut]:
    """Neurons of every feed-forward: a row of what widens, of its gate where there is one, a column of what narrows.

    A packed layer holds the values in one half of its rows and the gates in the other, so neuron i is rows i and n + i.
    """
    for layer in layers(model):
        if layer.feed_forward is None:
            continue
        if layer.feed_forward.whole or layer.feed_forward.name == layer.name:
            yield _neurons(model, layer.feed_forward, min_keep)
        else:
            yield LeftOut(layer.feed_forward.name, "it holds more than the layers that widen and narrow")


def _neurons(model: nn.Module, feed_forward: FeedForward, min_keep: int) -> Found | LeftOut:
    name = feed_forward.name
    try:
        group = feed_forward_group(
            model,
            join_name(name, "neurons"),
            up=feed_forward.up,
            down=feed_forward.down,
            gate=feed_forward.gate,
            fused_gate=feed_forward.packed,
        )
    except ValueError as error:
        return LeftOut(name, str(error))
    return Found(replace(group, min_keep=min_keep), emptied=feed_forward_block(model, feed_forward, bias=True))


def feed_forward_block(model: nn.Module, feed_forward: FeedForward, *, bias: bool) -> Block | None:
    """The feed-forward as a block that goes whole, its last bias too unless `bias`.

    Returns:
        None if it is no module of its own, or changes the width.
    """
    down = model.get_submodule(feed_forward.down)
    assert isinstance(down, nn.Linear)
    if not feed_forward.whole or down.out_features != width(model, feed_forward.up, 1):
        return None
    biases = (f"{split_name(feed_forward.down)[1]}.bias",) if bias and down.bias is not None else ()
    return Block(feed_forward.name, biases=biases, features_last=bool(biases))
