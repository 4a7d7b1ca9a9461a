"""Outputs of the layers that modulate: shifts, scales and gates of adaptive norms."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from diffusion.units.blocks import is_transformer_block
from secateur.surgery.found import Found, LeftOut, linear, named
from secateur.surgery.layers import join_name
from secateur.units import Member, UnitGroup


def find_modulation(model: nn.Module, min_keep: int = 1) -> Iterator[Found | LeftOut]:
    """Single shifts, scales and gates of every adaptive norm in a transformer block (EcoDiff, arXiv 2412.02852).

    One that goes is 0: it shifts nothing, scales by 1, or shuts its branch for one feature. The stream keeps its width,
    so this saves parameters and multiply-adds of the modulating layer only.
    """
    for block_name, block in named(model):
        if not is_transformer_block(block):
            continue
        for child_name, child in block.named_children():
            layer = linear(child, "linear")
            if layer is not None and "silu" in child._modules:
                yield _outputs(join_name(block_name, f"{child_name}.linear"), layer, min_keep)


def _outputs(name: str, layer: nn.Linear, min_keep: int) -> Found:
    tensors = ["weight", *(["bias"] if layer.bias is not None else [])]
    members = tuple(Member(join_name(name, tensor), 0) for tensor in tensors)
    return Found(UnitGroup(join_name(name, "outputs"), layer.out_features, members, min_keep=min_keep), scattered=True)
