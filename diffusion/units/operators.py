"""Single operators as units, each with the cheap stand-in that LD-Pruner puts in its place."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from diffusion.units.blocks import is_stack
from diffusion.units.feed_forward import feed_forward_block, is_feed_forward
from diffusion.units.heads import attention_block, is_attention
from diffusion.units.resnets import is_resnet, resnet_block
from secateur.surgery.found import Found, LeftOut, named, whole
from secateur.surgery.layers import split_name
from secateur.surgery.stand_in import Block, has_pointwise


def find_operators(model: nn.Module, min_keep: int = 0) -> Iterator[Found | LeftOut]:
    """Every operator alone, as LD-Pruner scores them (Castells et al., arXiv 2404.11936).

    A convolution that keeps its shape, a projection that keeps its width and a norm leave their input; another
    convolution leaves a 1x1 convolution with its stride, whose weights are at first the sum of its taps; attentions and
    feed-forwards leave nothing, because the residual is added outside; a resnet leaves its shortcut. Paper and
    supplement do not list the stand-ins, so these are ours. Patch embeddings stay.
    """
    for name, module in named(model):
        block = _block(model, name, module)
        if block is not None:
            yield whole(model, block)


def _block(model: nn.Module, name: str, module: nn.Module) -> Block | None:
    if is_attention(module):
        return attention_block(name, module, bias=False)
    if is_feed_forward(module):
        return feed_forward_block(name, module, bias=False)
    if is_resnet(module):
        return resnet_block(name, module, bias=False)
    if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        return Block(name, "input") if module.weight is not None else None
    if isinstance(module, nn.Conv2d):
        return _convolution(name, module)
    parent, child = split_name(name)
    projects = isinstance(module, nn.Linear) and child in ("proj_in", "proj_out")
    if projects and parent and is_stack(model.get_submodule(parent)) and module.in_features == module.out_features:
        return Block(name, "input")
    return None


def _convolution(name: str, layer: nn.Conv2d) -> Block | None:
    embeds_patches = layer.stride == layer.kernel_size and max(layer.stride) > 1
    if embeds_patches or isinstance(layer.padding, str):
        return None
    same = zip(layer.kernel_size, layer.padding, strict=True)
    keeps_size = set(layer.stride) == {1} and all(2 * pad == size - 1 for size, pad in same)
    if keeps_size and layer.in_channels == layer.out_channels:
        return Block(name, "input")
    return Block(name, "pointwise") if has_pointwise(layer) else None
