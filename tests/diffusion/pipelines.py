"""Tiny pipelines of diffusers with random weights: tokenizers, text encoders and autoencoders without a download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.diffusion.models import diffusers, random_model

transformers = pytest.importorskip("transformers")

LETTERS = tuple(map(chr, range(33, 127)))
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_VOCABULARY = {piece: at for at, piece in enumerate((*LETTERS, *(f"{one}</w>" for one in LETTERS), START, END))}
T5_VOCABULARY = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")] + [(one, -1.0) for one in ("▁", *LETTERS)]


def clip_tokenizer() -> Any:
    """Every letter is a token; 16 of them."""
    return transformers.CLIPTokenizer(vocab=CLIP_VOCABULARY, merges=[], model_max_length=16)


def t5_tokenizer() -> Any:
    """Every letter is a token; its greatest length differs from that of prompts in any pipeline."""
    return transformers.T5Tokenizer(vocab=T5_VOCABULARY, extra_ids=0, model_max_length=24)


def clip(width: int, projection: int | None = None) -> nn.Module:
    """A text encoder; with a projection of the pooled prompt where its width is given."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(CLIP_VOCABULARY),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=projection or width,
        bos_token_id=CLIP_VOCABULARY[START],
        eos_token_id=CLIP_VOCABULARY[END],
        initializer_factor=10.0,
    )
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return kind(config).eval()


def t5(width: int) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=len(T5_VOCABULARY), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    return transformers.T5EncoderModel(config).eval()


def vae(**scales: float) -> nn.Module:
    """Pictures of twice the latents' side; its scales are not those that other code may take for granted."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        mid_block_add_attention=False,
        norm_num_groups=4,
        **{"scaling_factor": 0.7, **scales},
    ).eval()


def stable_diffusion() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(12),
        tokenizer=clip_tokenizer(),
        unet=random_model("unet"),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(4),
        text_encoder_2=clip(8, projection=8),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=random_model("sdxl"),
        scheduler=diffusers.EulerDiscreteScheduler(),
    )


def stable_diffusion_3() -> Any:
    return diffusers.StableDiffusion3Pipeline(
        transformer=random_model("sd3"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.2),
        text_encoder=clip(4, projection=8),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(8, projection=8),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(12),  # from_pretrained of diffusers 0.42 refuses a folder that was saved without one
        tokenizer_3=t5_tokenizer(),
    )


def pixart(**changes: Any) -> Any:
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(12),
        vae=vae(),
        transformer=random_model("pixart", **changes),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def pixart_1024() -> Any:
    """The size of latents at which PixArt-alpha is told the picture's resolution, in few patches."""
    return pixart(
        sample_size=128, patch_size=32, use_additional_conditions=None, num_attention_heads=3, cross_attention_dim=24
    )


def flux(guidance_embeds: bool) -> Any:
    """The dev model where guidance is an input, the schnell model where it is not."""
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance_embeds),
        vae=vae(shift_factor=0.2),
        text_encoder=clip(16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(12),
        tokenizer_2=t5_tokenizer(),
        transformer=random_model("flux", in_channels=16, guidance_embeds=guidance_embeds),
    )


def dit() -> Any:
    network = random_model("dit", in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    return diffusers.DiTPipeline(transformer=network, vae=vae(), scheduler=diffusers.DDIMScheduler())


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "pixart": pixart,
    "pixart-1024": pixart_1024,
    "flux-dev": lambda: flux(guidance_embeds=True),
    "flux-schnell": lambda: flux(guidance_embeds=False),
    "dit": dit,
}


def random_pipeline(name: str) -> Any:
    """The pipeline with random weights of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PIPELINES[name]()
