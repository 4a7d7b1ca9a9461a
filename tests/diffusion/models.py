"""Tiny random models of every family, with inputs, for tests of what does not need training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")


def unet2d(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DModel(**config | changes)


def unet(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "cross_attention_dim": 12,
    }
    return diffusers.UNet2DConditionModel(**config | changes)


def sdxl(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
    }
    return unet(**config | changes)


def dit(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "in_channels": 1,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 10,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
    }
    return diffusers.DiTTransformer2DModel(**config | changes)


def pixart(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "cross_attention_dim": 32,
        "sample_size": 8,
        "patch_size": 2,
        "caption_channels": 12,
        "use_additional_conditions": False,
    }
    return diffusers.PixArtTransformer2DModel(**config | changes)


def sd3(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 12,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 16,
        "out_channels": 4,
        "pos_embed_max_size": 8,
    }
    return diffusers.SD3Transformer2DModel(**config | changes)


def flux(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (2, 2, 4),
    }
    return diffusers.FluxTransformer2DModel(**config | changes)


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "unet2d": unet2d,
    "unet": unet,
    "sdxl": sdxl,
    "dit": dit,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
}


def random_model(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model whose every parameter is random (diffusers starts gates and last layers at zero)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family](**changes)
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, std=0.2 if parameter.dim() > 1 else 0.3)
            if "norm" in name and name.endswith("weight") and parameter.dim() == 1:
                parameter.data += 1
    return model.eval()


def inputs(family: str, batch: int = 2) -> dict[str, Any]:
    """Arguments of a forward of the family's tiny model."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    timestep = torch.full((batch,), 300)
    labels = torch.arange(batch) % 10
    match family:
        case "unet2d":
            return {"sample": random(1, 8, 8), "timestep": timestep}
        case "unet":
            return {"sample": random(4, 8, 8), "timestep": timestep, "encoder_hidden_states": random(5, 12)}
        case "sdxl":
            added = {"text_embeds": random(8), "time_ids": random(6)}
            return inputs("unet", batch) | {"added_cond_kwargs": added}
        case "dit":
            return {"hidden_states": random(1, 8, 8), "timestep": timestep, "class_labels": labels}
        case "pixart":
            latents = {"hidden_states": random(4, 8, 8), "encoder_hidden_states": random(5, 12), "timestep": timestep}
            return latents | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        case "sd3":
            streams = {"hidden_states": random(4, 8, 8), "encoder_hidden_states": random(5, 12)}
            return streams | {"pooled_projections": random(16), "timestep": timestep}
    streams = {"hidden_states": random(16, 4), "encoder_hidden_states": random(5, 12)}
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    ids = {"img_ids": places, "txt_ids": torch.zeros(5, 3)}
    return streams | ids | {"pooled_projections": random(16), "timestep": timestep / 1000}


def run(family: str) -> Callable[[Any], Tensor]:
    """Runs a model, or a `Network` of it, on the family's inputs, in evaluation mode."""
    arguments = inputs(family)

    @torch.no_grad()
    def forward(model: Any) -> Tensor:
        return model(**arguments, return_dict=False)[0]

    return forward
