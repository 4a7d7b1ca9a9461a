"""Pixels of the right shape for a vision transformer, to count multiply-adds and measure time with."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the images that the model is configured for.

    Raises:
        ValueError: it has no configuration that says so.
    """
    config = getattr(model, "config", None)
    vision = getattr(config, "vision_config", config)
    size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", None)
    if size is None or not isinstance(channels, int):
        raise ValueError(
            f"{type(model).__name__} has no configuration with image_size and num_channels; give inputs yourself"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def example_inputs(model: nn.Module, batch: int = 1, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Arguments of the model's `forward`: `pixel_values` of zeros, on its device and in its dtype.

    Args:
        model: a vision transformer of transformers, with its `config`.
        batch: images.
        size: (height, width); None: the configuration's.

    Raises:
        ValueError: the model has no such configuration, or batch or size are below 1.
    """
    channels, *configured = image_shape(model)
    height, width = configured if size is None else size
    if min(batch, height, width) < 1:
        raise ValueError(f"batch and size must be at least 1, got {batch} images of {height} x {width} pixels")
    parameter = next(model.parameters())
    return {"pixel_values": torch.zeros(batch, channels, height, width, dtype=parameter.dtype, device=parameter.device)}


def check_pixels(model: nn.Module, pixel_values: Float[Tensor, "batch channels height width"]) -> None:
    """Raise ValueError, with what would be right, for images that the model cannot read.

    Args:
        model: a vision transformer of transformers, with its `config`.
        pixel_values: prepared images, floats.
    """
    channels, height, width = image_shape(model)
    found: Any = tuple(pixel_values.shape)
    if len(found) != 4 or found[1] != channels:
        raise ValueError(f"pixel_values must be (batch, {channels}, height, width), got {found}")
    if found[2:] != (height, width):
        raise ValueError(f"images must be {height} x {width} pixels for this model, got {found[2]} x {found[3]}")
    if not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values must be floats, normalised as for training, got {pixel_values.dtype}")
    if not bool(torch.isfinite(pixel_values).all()):
        raise ValueError("pixel_values hold NaN or infinity")
