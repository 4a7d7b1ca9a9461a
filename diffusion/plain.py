"""Cuts that a configuration of diffusers can express: the model that plain diffusers builds, with what is left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.surgery.layers import split_name
from secateur.surgery.network import Network
from secateur.surgery.stand_in import Block

_STACK = re.compile(r"(down_blocks\.(\d+)|up_blocks\.(\d+)|mid_block)\.attentions\.(\d+)\.transformer_blocks")


@dataclass(frozen=True, slots=True)
class Plain:
    """A smaller model of the same class.

    Args:
        model: it holds the pruned network's own parameters.
        renamed: module of the pruned network -> its name in the model, for those that moved up.
    """

    model: nn.Module
    renamed: Mapping[str, str]


def as_plain(network: Network) -> Plain | None:
    """The network as a model that diffusers' configuration describes, or None where no configuration does.

    Expressible are transformer blocks that went whole: `num_layers` of DiT, PixArt and SD3, `num_layers` and
    `num_single_layers` of Flux, `transformer_layers_per_block` of UNets. Fewer heads are not: in all these classes the
    configuration ties heads times their width to the stream's width. Neither is the width of a feed-forward.
    """
    cuts = network.cuts
    if cuts.rows or cuts.attributes or cuts.scattered or not cuts.blocks:
        return None
    blocks = [block for _, block in cuts.blocks.values()]
    if not all(_leaves_input(network.module, block) for block in blocks):
        return None
    lists = {split_name(block.module)[0] for block in blocks}
    gone = {block.module for block in blocks}
    kept = {
        name: [index for index in map(str, range(_length(network.module, name))) if f"{name}.{index}" not in gone]
        for name in lists
    }
    config = _config(network.module, {name: len(indices) for name, indices in kept.items()})
    if config is None or not all(kept.values()):
        return None
    renamed = {
        f"{name}.{old}": f"{name}.{new}"
        for name, indices in kept.items()
        for new, old in enumerate(indices)
        if str(new) != old
    }
    return _filled(network.module, config, renamed)


def _leaves_input(module: nn.Module, block: Block) -> bool:
    """Whether the block was an entry of a list that is run in a row, and nothing of it is left."""
    parent, index = split_name(block.module)
    listed = isinstance(module.get_submodule(parent), nn.ModuleList) and index.isdecimal()
    return listed and block.leaves == "input" and not block.pieces()


def _length(module: nn.Module, name: str) -> int:
    return len(module.get_submodule(name))  # type: ignore[arg-type]


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


def _filled(module: Any, config: Mapping[str, Any], renamed: Mapping[str, str]) -> Plain | None:
    """The model of that configuration with the module's tensors; None if they are not the ones that it needs."""
    with torch.device("meta"):
        model = type(module).from_config(config)
    state = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        old = next((old for old in renamed if name.startswith(f"{old}.")), None)
        state[name if old is None else renamed[old] + name[len(old) :]] = tensor
    needed = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if needed != {name: tensor.shape for name, tensor in state.items()}:
        return None
    model.load_state_dict(state, strict=True, assign=True)
    return Plain(model, renamed)
