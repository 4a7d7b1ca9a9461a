"""A diffusers model as a `Network` whose units can be masked and cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from diffusion.units.blocks import (
    find_attentions,
    find_feed_forwards,
    find_resnets,
    find_stacks,
    find_transformer_blocks,
)
from diffusion.units.feed_forward import find_neurons
from diffusion.units.heads import find_heads
from diffusion.units.modulation import find_modulation
from diffusion.units.operators import find_operators
from diffusion.units.resnets import find_channels
from secateur.surgery.cut import Cuts
from secateur.surgery.found import Find, find_network
from secateur.surgery.network import Network

Kind = Literal[
    "heads",
    "neurons",
    "channels",
    "modulation",
    "resnets",
    "attentions",
    "feed_forwards",
    "transformer_blocks",
    "stacks",
    "operators",
]
"""What the units are: heads of attentions, neurons of feed-forwards, norm groups of resnets' inner channels, outputs of
modulating layers; or whole modules: resnets, attentions, feed-forwards, transformer blocks, a UNet's stacks of these,
and single operators with LD-Pruner's stand-ins."""

_FINDERS: Mapping[str, Find] = {
    "heads": find_heads,
    "neurons": find_neurons,
    "channels": find_channels,
    "modulation": find_modulation,
    "resnets": find_resnets,
    "attentions": find_attentions,
    "feed_forwards": find_feed_forwards,
    "transformer_blocks": find_transformer_blocks,
    "stacks": find_stacks,
    "operators": find_operators,
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
    """The units of a diffusion model.

    Groups are named by the module and the kind: `mid_block.attentions.0.transformer_blocks.0.attn1.heads`,
    `...ff.neurons`; whole modules by their name alone. What looks like units but cannot be cut is in the network's
    `left_out`, with the reason.

    Args:
        model: a UNet or transformer of diffusers, on any device, the meta device too. It is not changed.
        kinds: which units.
        example_inputs: as for `Network`: what multiply-adds are counted with; None: they are not counted.
        modules: patterns (`*` matches anything) over module names; only units below one that matches are taken.
        min_keep: the fewest units of a layer that may stay. 0 lets a layer lose all: then it still adds its bias.
            Whole modules may always go.
        cuts: what was cut from the model before, if it was.

    Raises:
        ValueError: the model has no units of a kind, kinds exclude one another, or a pattern matches nothing.
    """
    if {"channels", "operators"} <= set(kinds):
        raise ValueError("channels and operators overlap inside resnets; prune them in two runs, one after the other")
    return find_network(model, _FINDERS, kinds, example_inputs, modules=modules, min_keep=min_keep, cuts=cuts)
