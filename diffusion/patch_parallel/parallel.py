"""Patch parallelism: each rank computes its rows of the latents, with what the others told it at the step before.

DistriFusion (Li et al. 2024, arXiv 2402.19481) hides the messages behind the work: after a few synchronous steps, every
layer uses the other patches' features of the step before. PCPP (Zhang et al. 2024, arXiv 2412.02962) sends less: a
patch's self-attention sees only part of its neighbours' features, and nothing of patches that are further away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from diffusion.patch_parallel.exchange import Exchange, Traffic
from diffusion.patch_parallel.layers import (
    Forward,
    GroupNormMode,
    Patch,
    convolution,
    first_convolution,
    group_norm,
    keys_or_values,
    last_convolution,
    last_projection,
    patch_embedding,
    unpadded_downsampling,
)
from diffusion.steps import replaced_forward


@dataclass(frozen=True)
class Staleness:
    """How old what a patch knows of the others may be, and how much that is.

    Args:
        warmup: synchronous steps at the start of a trajectory, at least 1; None makes all steps synchronous, which
            computes what one process computes. The authors' code of DistriFusion has 5 by default.
        context: after the warm-up, the share of each neighbour's keys and values, nearest first, that self-attention
            sees (PCPP); 0 leaves each patch to itself. None: all keys and values of all patches (DistriFusion).
        group_norm: see `GroupNormMode`.

    Raises:
        ValueError: a value out of range.
    """

    warmup: int | None = 5
    context: float | None = None
    group_norm: GroupNormMode = "corrected"

    def __post_init__(self) -> None:
        if self.warmup is not None and self.warmup < 1:
            raise ValueError(f"warmup must be at least 1: the first step knows nothing old, got {self.warmup}")
        if self.context is not None and not 0 <= self.context <= 1:
            raise ValueError(f"context must be 0 to 1, got {self.context}")
        if self.context is not None and self.warmup is None:
            raise ValueError("context says what steps after the warm-up see; with warmup=None there are none")
        if self.group_norm not in get_args(GroupNormMode):
            raise ValueError(f"group_norm must be one of {get_args(GroupNormMode)}, got {self.group_norm!r}")


@contextmanager
def patch_parallel(denoiser: nn.Module, staleness: Staleness | None = None, group: Any = None) -> Iterator[Traffic]:
    """While the context is open, the ranks of a `torch.distributed` group share each call of `denoiser`, by rows.

    DistriFusion (arXiv 2402.19481), or PCPP (arXiv 2412.02962) where `staleness.context` is given.

    Every rank runs the same sampler or pipeline from the same noise, and hands the whole latents in; each computes its
    rows, and each gets the whole prediction back. A new trajectory is known by its time steps, which begin high again.

    What travels: border rows of convolutions between neighbours, keys and values of self-attention, statistics of group
    norms, and the prediction. Cross-attention, feed-forwards and layer norms need nothing.

    Args:
        denoiser: `UNet2DModel`, `UNet2DConditionModel`, or a transformer with a patch embedding
            (`DiTTransformer2DModel`, `PixArtTransformer2DModel`, `SD3Transformer2DModel`), with the same weights on all
            ranks; pruned ones, too. It is in evaluation mode, and called without gradients.
        staleness: by default DistriFusion's; on a single rank it does not matter, for nothing changes there.
        group: None is the default group; without one, this process is alone.

    Yields:
        What this rank has received.

    Raises:
        ValueError: a layer mixes rows in a way that is not known; or, at a call, the rows do not divide over the ranks,
            or gradients are asked for.
    """
    exchange = Exchange(group)
    if exchange.ranks == 1:
        yield exchange.traffic
        return
    staleness = staleness or Staleness()
    patch = Patch(exchange, staleness.warmup, staleness.context, staleness.group_norm)
    unit = _rows_per_rank(denoiser)

    def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _check_call(args, kwargs, exchange.ranks, unit)
        patch.counter.advance(args, kwargs)
        exchange.traffic.begin()

    with ExitStack() as stack:
        stack.callback(exchange.close)
        stack.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
        forwards = _unet_forwards(patch, denoiser) if _is_unet(denoiser) else _transformer_forwards(patch, denoiser)
        for attention, seen in _attentions(denoiser).items():
            stack.callback(attention.register_forward_pre_hook(seen, with_kwargs=True).remove)
            for child in ("to_k", "to_v"):
                layer = attention.get_submodule(child)
                forwards[layer] = keys_or_values(patch, f"{seen.name}.{child}", layer, seen)
        for module, forward in forwards.items():
            stack.enter_context(replaced_forward(module, forward))
        yield exchange.traffic


class _Seen:
    """Whether an attention is being called on its own tokens."""

    def __init__(self, name: str, joint: bool) -> None:
        self.name = name
        self.joint = joint
        self.is_self = False

    def __call__(self, *hook: Any) -> bool | None:
        """As a hook before the attention: take note. Without arguments: what was noted."""
        if not hook:
            return self.is_self
        _module, args, kwargs = hook
        other = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
        self.is_self = self.joint or other is None
        return None


def _attentions(denoiser: nn.Module) -> dict[nn.Module, Any]:
    """Attentions with their hooks; a joint one projects its other sequence with layers of its own."""
    found = {}
    for name, module in denoiser.named_modules():
        if not (hasattr(module, "to_k") and hasattr(module, "to_v")):
            continue
        if getattr(module, "fused_projections", False):
            raise ValueError(f"{name} has fused projections; undo them first (unfuse_qkv_projections)")
        found[module] = _Seen(name, getattr(module, "add_k_proj", None) is not None)
    return found


def _is_unet(denoiser: nn.Module) -> bool:
    return all(hasattr(denoiser, name) for name in ("conv_in", "down_blocks", "up_blocks", "conv_out"))


def _unet_forwards(patch: Patch, unet: nn.Module) -> dict[nn.Module, Forward]:
    """What each layer that looks beyond its rows does instead."""
    forwards: dict[nn.Module, Forward] = {}
    parents = dict(unet.named_modules())
    for name, module in parents.items():
        if isinstance(module, nn.GroupNorm):
            forwards[module] = group_norm(patch, name, module)
        elif isinstance(module, nn.Conv2d):
            parent = parents[name.rpartition(".")[0]]
            if forward := _convolution_forward(patch, name, module, parent, unet):
                forwards[module] = forward
        elif isinstance(module, nn.ConvTranspose2d | nn.modules.batchnorm._BatchNorm) or hasattr(module, "skip_conv"):
            raise ValueError(f"{name} is a {type(module).__name__}, which patch parallelism does not know")
    return forwards


def _convolution_forward(
    patch: Patch, name: str, layer: nn.Conv2d, parent: nn.Module, unet: nn.Module
) -> Forward | None:
    size, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    if layer.padding_mode != "zeros" or layer.dilation[0] != 1 or isinstance(padding, str):
        raise ValueError(f"{name}: only zero padding of a given size without dilation can be shared among patches")
    if padding == 0 and size == stride:
        return None
    if padding == 0 and (size, stride) == (3, 2) and getattr(parent, "padding", None) == 0:
        return unpadded_downsampling(patch, name, layer)
    if size != 2 * padding + 1:
        raise ValueError(f"{name}: a kernel of {size} with padding {padding} does not keep rows in their place")
    if layer is unet.conv_in:
        return first_convolution(patch, layer)
    if layer is unet.conv_out:
        return last_convolution(patch, name, layer)
    return convolution(patch, name, layer)


def _transformer_forwards(patch: Patch, transformer: nn.Module) -> dict[nn.Module, Forward]:
    embedding = getattr(transformer, "pos_embed", None)
    last = getattr(transformer, "proj_out_2", None) or getattr(transformer, "proj_out", None)
    if not isinstance(getattr(embedding, "proj", None), nn.Conv2d) or not isinstance(last, nn.Module):
        raise ValueError(
            f"{type(transformer).__name__} is neither a UNet with conv_in, down_blocks, up_blocks and conv_out nor a "
            "transformer with a patch embedding pos_embed and a last projection"
        )
    assert isinstance(embedding, nn.Module)
    return {embedding: patch_embedding(patch, embedding), last: last_projection(patch, last)}


def _rows_per_rank(denoiser: nn.Module) -> int:
    """The rows of latents of each rank are a multiple of this: a row on the coarsest grid, or a row of tokens."""
    if not _is_unet(denoiser):
        config: Mapping[str, Any] = getattr(denoiser, "config", {})
        return int(config.get("patch_size") or 1)
    blocks: Any = denoiser.down_blocks
    return 2 ** sum(len(getattr(block, "downsamplers", None) or ()) for block in blocks)


def _check_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], ranks: int, unit: int) -> None:
    latents = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    if not isinstance(latents, Tensor) or latents.ndim != 4:
        raise ValueError("patch parallelism needs latents (batch, channels, height, width) as the first argument")
    if latents.shape[2] % (ranks * unit):
        raise ValueError(
            f"{latents.shape[2]} rows of latents do not divide over {ranks} ranks: the height must be a multiple of "
            f"{ranks * unit}"
        )
    if torch.is_grad_enabled():
        raise ValueError("patches exchange values, not gradients; call the denoiser under torch.no_grad()")
