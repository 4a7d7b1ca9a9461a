"""Cuts that a library's own configuration can express: the model that it builds, with what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from secateur.surgery.cut import Cuts
from secateur.surgery.layers import split_name
from secateur.surgery.stand_in import Block


@dataclass(frozen=True, slots=True)
class Plain:
    """A smaller model of the same class.

    Args:
        model: it holds the pruned network's own parameters; buffers that no file holds may be on the meta device.
        renamed: module of the pruned network -> its name in the model, for those that moved up.
    """

    model: nn.Module
    renamed: Mapping[str, str]


def kept_entries(module: nn.Module, cuts: Cuts) -> dict[str, list[int]] | None:
    """Name of each list of modules that lost whole entries -> the entries that stay.

    Returns:
        None if a block went that is no entry of a list, or left more than its input.
    """
    blocks = [block for _, block in cuts.blocks.values()]
    if not all(_leaves_input(module, block) for block in blocks):
        return None
    gone = {block.module for block in blocks}
    kept = {}
    for name in sorted({split_name(block.module)[0] for block in blocks}):
        length = len(module.get_submodule(name))  # type: ignore[arg-type]
        kept[name] = [index for index in range(length) if f"{name}.{index}" not in gone]
    return kept


def _leaves_input(module: nn.Module, block: Block) -> bool:
    """Whether the block was an entry of a list that is run in a row, and nothing of it is left."""
    parent, index = split_name(block.module)
    listed = isinstance(module.get_submodule(parent), nn.ModuleList) and index.isdecimal()
    return listed and block.leaves == "input" and not block.pieces()


def renamed_entries(kept: Mapping[str, list[int]]) -> dict[str, str]:
    """Names of the entries that stay -> their names once the lists are shorter, for those that move up."""
    return {
        f"{name}.{old}": f"{name}.{new}"
        for name, entries in kept.items()
        for new, old in enumerate(entries)
        if new != old
    }


def renamed_to(name: str, renamed: Mapping[str, str]) -> str:
    """The name in the shorter model of a module or tensor of the pruned one."""
    for old, new in renamed.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def filled(model: nn.Module, module: nn.Module, renamed: Mapping[str, str]) -> Plain | None:
    """The model, on the meta device, with the module's tensors; None if they are not the ones that it needs."""
    state = {renamed_to(name, renamed): tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    needed = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if needed != {name: tensor.shape for name, tensor in state.items()}:
        return None
    model.load_state_dict(state, strict=True, assign=True)
    return Plain(model, renamed)
