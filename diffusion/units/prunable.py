"""A diffusers model as a `Network` whose units can be masked and cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
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
from diffusion.units.found import Found, LeftOut, merged
from diffusion.units.heads import find_heads
from diffusion.units.modulation import find_modulation
from diffusion.units.operators import find_operators
from diffusion.units.resnets import find_channels
from secateur.surgery.cut import Cuts
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

Find = Callable[[nn.Module, int], Iterator[Found | LeftOut]]

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
    found: list[Found] = []
    left_out: dict[str, str] = {}
    for kind in dict.fromkeys(kinds):
        if kind not in _FINDERS:
            raise ValueError(f"there are no units of kind {kind!r}; there are {sorted(_FINDERS)}")
        entries, reasons = merged(_FINDERS[kind](model, min_keep))
        if not entries:
            raise ValueError(f"{type(model).__name__} has no {kind} that could be cut{_because(reasons)}")
        taken = {entry.group.name for entry in found}
        found += [entry for entry in entries if entry.group.name not in taken]
        left_out |= reasons
    chosen = _matching(found, modules)
    return Network(
        model,
        [entry.group for entry in chosen],
        example_inputs,
        blocks={entry.group.name: entry.blocks for entry in chosen if entry.blocks},
        counts=[count for entry in chosen for count in entry.counts],
        cuts=cuts,
        left_out=left_out,
        emptied={entry.group.name: entry.emptied for entry in chosen if entry.emptied},
        scattered=[entry.group.name for entry in chosen if entry.scattered],
    )


def _because(reasons: Mapping[str, str]) -> str:
    return "".join(f": {module}: {reason}" for module, reason in list(reasons.items())[:1])


def _matching(found: Sequence[Found], patterns: Sequence[str]) -> list[Found]:
    """The groups whose name, or the name of a module above, matches one of the patterns."""
    chosen: dict[str, Found] = {}
    for pattern in patterns:
        hits = [entry for entry in found if _matches(entry.group.name, pattern)]
        if not hits:
            raise ValueError(
                f"module pattern {pattern!r} matches none of {len(found)} groups, such as {found[0].group.name!r}"
            )
        chosen |= {entry.group.name: entry for entry in hits}
    return [entry for entry in found if entry.group.name in chosen]


def _matches(name: str, pattern: str) -> bool:
    steps = name.split(".")
    return any(fnmatchcase(".".join(steps[:end]), pattern) for end in range(1, len(steps) + 1))
