"""Inner channels of residual convolution blocks, in whole norm groups."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from secateur.surgery.found import Found, LeftOut, named, width
from secateur.surgery.layers import join_name
from secateur.surgery.stand_in import Block
from secateur.units import Member, UnitGroup


def is_resnet(module: nn.Module) -> bool:
    """Whether the module holds conv1, norm2, conv2, and norm2 norms in groups what conv1 writes and conv2 reads."""
    first, norm, second = (module._modules.get(name) for name in ("conv1", "norm2", "conv2"))
    if not isinstance(first, nn.Conv2d) or not isinstance(second, nn.Conv2d) or not isinstance(norm, nn.GroupNorm):
        return False
    return first.out_channels == norm.num_channels == second.in_channels and first.groups == second.groups == 1


def find_channels(model: nn.Module, min_keep: int = 1) -> Iterator[Found | LeftOut]:
    """Channels between the two convolutions of every resnet, one unit for each group of `norm2`, as APTP gates them.

    Whole groups leave the statistics of the others as they are (APTP, arXiv 2406.12042). A unit is hidden where conv2
    reads it: before, the shift of `norm2` and the time step's embedding would bring it back.
    """
    for name, module in named(model):
        if is_resnet(module):
            yield _channels(name, module, min_keep)


def _channels(name: str, module: nn.Module, min_keep: int) -> Found | LeftOut:
    norm, first = module.norm2, module.conv1
    assert isinstance(norm, nn.GroupNorm) and isinstance(first, nn.Conv2d)
    channels, groups = norm.num_channels, norm.num_groups
    rows = torch.arange(channels).reshape(groups, -1)
    members = [Member(join_name(name, "conv1.weight"), 0, rows)]
    if first.bias is not None:
        members.append(Member(join_name(name, "conv1.bias"), 0, rows))
    if norm.weight is not None:
        members += [Member(join_name(name, f"norm2.{tensor}"), 0, rows) for tensor in ("weight", "bias")]
    embedded = width(module, "time_emb_proj", 0)
    if embedded:
        if embedded not in (channels, 2 * channels):
            return LeftOut(name, f"{embedded} outputs of time_emb_proj do not fit {channels} channels")
        members += _embedding(name, module, rows, embedded)
    members.append(Member(join_name(name, "conv2.weight"), 1, rows))
    emptied = resnet_block(name, module, bias=True)
    floor = max(min_keep, 0 if emptied is not None else 1)
    return Found(UnitGroup(join_name(name, "channels"), groups, tuple(members), min_keep=floor), emptied=emptied)


def _embedding(name: str, module: nn.Module, rows: Tensor, outputs: int) -> list[Member]:
    """Rows of the layer that adds the time step, or scales in its first half and shifts in its second."""
    channels = rows.numel()
    own = torch.cat([rows + start for start in range(0, outputs, channels)], dim=1)
    layer = join_name(name, "time_emb_proj")
    has_bias = module.time_emb_proj.bias is not None  # type: ignore[union-attr]
    return [Member(join_name(layer, tensor), 0, own) for tensor in ("weight", *(["bias"] if has_bias else []))]


def resnet_block(name: str, module: nn.Module, *, bias: bool) -> Block | None:
    """The resnet as a block that leaves its shortcut, and conv2's bias if `bias`; None if it resizes or rescales."""
    resizes = getattr(module, "upsample", None) is not None or getattr(module, "downsample", None) is not None
    if resizes or getattr(module, "output_scale_factor", 1.0) != 1.0:
        return None
    shortcut = module._modules.get("conv_shortcut")
    second = module.conv2
    if shortcut is None and module.conv1.in_channels != second.out_channels:  # type: ignore[union-attr]
        return None
    biases = ("conv2.bias",) if bias and second.bias is not None else ()  # type: ignore[union-attr]
    return Block(name, "input", part="" if shortcut is None else "conv_shortcut", biases=biases)
