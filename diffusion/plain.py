"""Cuts that a configuration of diffusers can express: the model that plain diffusers builds, with what is left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from secateur.surgery.network import Network
from secateur.surgery.plain import Plain, filled, kept_entries, renamed_entries

_STACK = re.compile(r"(down_blocks\.(\d+)|up_blocks\.(\d+)|mid_block)\.attentions\.(\d+)\.transformer_blocks")


def as_plain(network: Network) -> Plain | None:
    """The network as a model that diffusers' configuration describes, or None where no configuration does.

    Expressible are transformer blocks that went whole: `num_layers` of DiT, PixArt and SD3, `num_layers` and
    `num_single_layers` of Flux, `transformer_layers_per_block` of UNets. Fewer heads are not: in all these classes the
    configuration ties heads times their width to the stream's width. Neither is the width of a feed-forward.
    """
    cuts = network.cuts
    if cuts.rows or cuts.attributes or cuts.scattered or not cuts.blocks:
        return None
    kept = kept_entries(network.module, cuts)
    if kept is None or not all(kept.values()):
        return None
    config = _config(network.module, {name: len(entries) for name, entries in kept.items()})
    if config is None:
        return None
    with torch.device("meta"):
        model = type(network.module).from_config(config)  # type: ignore[attr-defined]
    return filled(model, network.module, renamed_entries(kept))


def _config(module: Any, lengths: Mapping[str, int]) -> dict[str, Any] | None:
    """The configuration with these numbers of blocks in the lists of these names; None if it has no field for one."""
    # Among the fields that diffusers notes itself are names of defaults, whose values it would not read.
    config = {name: value for name, value in module.config.items() if not name.startswith("_")}
    stacks: dict[str, int] = {}
    for name, length in lengths.items():
        field = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}.get(name)
        if field is not None and field in config:
            config[field] = length
        elif _STACK.fullmatch(name):
            stacks[name] = length
        else:
            return None
    return _with_stacks(module, config, stacks) if stacks else config


def _with_stacks(module: Any, config: dict[str, Any], changed: Mapping[str, int]) -> dict[str, Any] | None:
    """`transformer_layers_per_block` of a UNet whose stacks have these lengths; None where they differ in a stage."""
    stages: dict[str, set[int]] = {}
    for name, child in module.named_modules():
        found = _STACK.fullmatch(name)
        if found is not None:
            stages.setdefault(found[1], set()).add(changed.get(name, len(child)))
    if any(len(lengths) > 1 for lengths in stages.values()):
        return None
    count = len(module.down_blocks)
    only = {name: next(iter(lengths)) for name, lengths in stages.items()}
    down = [only.get(f"down_blocks.{index}", 1) for index in range(count)]
    up = [only.get(f"up_blocks.{index}", 1) for index in range(count)]
    if "down_blocks." + str(count - 1) not in only and "mid_block" in only:
        down[-1] = only["mid_block"]
    for index in range(count):
        # A stage that has stacks on one side only takes their length from either field.
        if f"up_blocks.{index}" not in only:
            up[index] = down[count - 1 - index]
        if f"down_blocks.{count - 1 - index}" not in only and index:
            down[count - 1 - index] = up[index]
    config["transformer_layers_per_block"] = down
    config["reverse_transformer_layers_per_block"] = None if up == down[::-1] else up
    return config
