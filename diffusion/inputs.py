"""Inputs of the right shapes for any of diffusers' networks, to count multiply-adds and measure time with."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn


def example_inputs(
    model: nn.Module, *, batch: int = 1, size: int | None = None, text_tokens: int = 77, timestep: float = 500
) -> dict[str, Any]:
    """Arguments of the network's `forward`, of zeros, on its device and in its dtype.

    Args:
        model: a UNet or transformer of diffusers, with its `config`.
        batch: samples.
        size: height and width of the latents; None: the configuration's (64 patches for packed latents, as in Flux).
        text_tokens: length of the prompt, where there is one.
        timestep: the time step, of 1000.

    Raises:
        ValueError: the network has no configuration, or none of diffusers' forwards; or as for `latent_size`.
    """
    config = getattr(model, "config", None)
    names = list(signature(model.forward).parameters)
    if config is None or names[0] not in ("sample", "hidden_states") or "timestep" not in names:
        raise ValueError(f"{type(model).__name__} is no denoising network of diffusers")
    parameter = next(model.parameters())

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, *shape, dtype=parameter.dtype, device=parameter.device)

    packed = "img_ids" in names
    height, width = latent_size(config, size or (64 if packed else None))
    latents = zeros(height * width, config.in_channels) if packed else zeros(config.in_channels, height, width)
    times = torch.full((batch,), timestep, device=parameter.device)
    inputs: dict[str, Any] = {names[0]: latents, "timestep": times}
    text = _text_width(config)
    if "encoder_hidden_states" in names and text:
        inputs["encoder_hidden_states"] = zeros(text_tokens, text)
    if "pooled_projections" in names:
        inputs["pooled_projections"] = zeros(config.pooled_projection_dim)
    labelled = config.get("num_embeds_ada_norm") if names[0] == "hidden_states" else config.get("num_class_embeds")
    if "class_labels" in names and labelled and "encoder_hidden_states" not in inputs:
        inputs["class_labels"] = torch.zeros(batch, dtype=torch.int64, device=parameter.device)
    if "added_cond_kwargs" in names:
        inputs |= _added(model, config, zeros)
    if packed:
        inputs["timestep"] = times / 1000
        inputs["img_ids"] = torch.zeros(height * width, 3, device=parameter.device)
        inputs["txt_ids"] = torch.zeros(text_tokens, 3, device=parameter.device)
        if config.get("guidance_embeds"):
            inputs["guidance"] = torch.full((batch,), 3.5, device=parameter.device)
    return inputs


def latent_size(config: Any, size: int | None = None) -> tuple[int, int]:
    """Height and width of a network's latents.

    Args:
        config: of the network.
        size: both of them; None: the configuration's.

    Raises:
        ValueError: the configuration has none.
    """
    side = size or config.sample_size
    if side is None:
        raise ValueError("sample_size is null in the model's config.json: say there how large its latents are")
    height, width = (side, side) if isinstance(side, int) else side
    return height, width


def _text_width(config: Any) -> int | None:
    """Features of a prompt's token as the network is given them."""
    for name in ("joint_attention_dim", "caption_channels", "encoder_hid_dim", "cross_attention_dim"):
        width = config.get(name)
        if width is not None:
            return width if isinstance(width, int) else width[0]
    return None


def _added(model: nn.Module, config: Any, zeros: Any) -> dict[str, Any]:
    """SDXL's pooled prompt and picture sizes, PixArt's resolution; nothing where the network takes none."""
    if config.get("addition_embed_type") == "text_time":
        times = 6
        pooled = config.projection_class_embeddings_input_dim - times * config.addition_time_embed_dim
        return {"added_cond_kwargs": {"text_embeds": zeros(pooled), "time_ids": zeros(times)}}
    if getattr(model, "use_additional_conditions", False):
        return {"added_cond_kwargs": {"resolution": zeros(2), "aspect_ratio": zeros(1)}}
    if config.get("caption_channels"):
        return {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return {}
