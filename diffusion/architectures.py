"""The denoising networks of well-known models, as diffusers' configurations: enough to plan with, on the meta device.

Numbers are those of the published `config.json` files of the models' repositories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network without weights.

    Args:
        kind: name of its class in diffusers.
        config: arguments of the class; those that are absent have diffusers' defaults.
        text_tokens: length of the prompts that its pipelines give it; 0 for classes.
    """

    kind: str
    config: Mapping[str, Any]
    text_tokens: int = 0

    def build(self, device: torch.device | str = "meta") -> nn.Module:
        """The network in evaluation mode, on the meta device unless told otherwise (random weights there)."""
        import diffusers

        with torch.device(device):
            return getattr(diffusers, self.kind)(**self.config).eval()


_STABLE_DIFFUSION: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}

SD_1_5 = Architecture("UNet2DConditionModel", _STABLE_DIFFUSION, text_tokens=77)

SD_2_1 = Architecture(
    "UNet2DConditionModel",
    _STABLE_DIFFUSION
    | {
        "sample_size": 96,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    text_tokens=77,
)

SDXL = Architecture(
    "UNet2DConditionModel",
    {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    text_tokens=77,
)

DIT_XL_2 = Architecture(
    "DiTTransformer2DModel",
    {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "sample_size": 32,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
    },
)

PIXART_ALPHA = Architecture(
    "PixArtTransformer2DModel",
    {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "sample_size": 64,
        "patch_size": 2,
        "use_additional_conditions": False,
    },
    text_tokens=120,
)

SD_3_MEDIUM = Architecture(
    "SD3Transformer2DModel",
    {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    text_tokens=333,
)

_FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}

FLUX_DEV = Architecture("FluxTransformer2DModel", _FLUX | {"guidance_embeds": True}, text_tokens=512)
FLUX_SCHNELL = Architecture("FluxTransformer2DModel", _FLUX | {"guidance_embeds": False}, text_tokens=256)
