"""A vision transformer as a `Network` whose units can be masked and cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from secateur.surgery.cut import Cuts
from secateur.surgery.found import Find, find_network
from secateur.surgery.network import Network
from vit.units.blocks import find_attentions, find_blocks, find_feed_forwards
from vit.units.embedding import find_embedding
from vit.units.feed_forward import find_neurons
from vit.units.heads import find_head_dims, find_heads
from vit.units.layouts import LOOKED_FOR, attentions, layers

Kind = Literal["heads", "head_dims", "neurons", "embedding", "attentions", "feed_forwards", "blocks"]
"""What the units are: heads of attentions, or the same dimension in all heads of one; neurons of feed-forwards;
features of the stream that all layers read and add to (of each stage, where patches are merged); or whole modules:
attentions, feed-forwards, and layers with both."""

_FINDERS: Mapping[str, Find] = {
    "heads": find_heads,
    "head_dims": find_head_dims,
    "neurons": find_neurons,
    "embedding": find_embedding,
    "attentions": find_attentions,
    "feed_forwards": find_feed_forwards,
    "blocks": find_blocks,
}


def prunable(
    model: nn.Module,
    kinds: Sequence[Kind] = ("heads", "neurons"),
    example_inputs: Any = None,
    *,
    modules: Sequence[str] = ("*",),
    min_keep: int = 1,
    cuts: Cuts | None = None,
) -> Network:
    """The units of a vision transformer.

    Groups are named by the module and the kind: `vit.layers.0.attention.heads`, `vit.layers.0.mlp.neurons`,
    `vit.embedding`; whole modules by their name alone. What looks like units but cannot be cut is in the network's
    `left_out`, with the reason.

    Args:
        model: a vision transformer of transformers, timm's form, or torch's encoder layers, on any device, the meta
            device too. It is not changed.
        kinds: which units.
        example_inputs: as for `Network`: what multiply-adds are counted with; None: they are not counted.
        modules: patterns (`*` matches anything) over module names; only units below one that matches are taken.
        min_keep: the fewest units of a layer that may stay. 0 lets a layer lose all heads or neurons: then it still
            adds its bias. Whole modules may always go.
        cuts: what was cut from the model before, if it was.

    Raises:
        ValueError: the model is no vision transformer, or has no units of a kind, kinds exclude one another, or a
            pattern matches nothing.
    """
    if {"heads", "head_dims"} <= set(kinds):
        raise ValueError("heads and head_dims own the same rows; prune them in two runs, one after the other")
    if not layers(model) and not any(True for _ in attentions(model)):
        raise ValueError(f"{type(model).__name__} is no vision transformer: no module of it holds {LOOKED_FOR}")
    return find_network(model, _FINDERS, kinds, example_inputs, modules=modules, min_keep=min_keep, cuts=cuts)
