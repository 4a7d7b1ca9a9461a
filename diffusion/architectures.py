"""The denoising networks of well-known models, as diffusers' configurations: enough to plan with, on the meta device.

Numbers are those of the published `config.json` files of the models' repositories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.surgery.model_folder import read_json

COMPONENTS = ("unet", "transformer")
"""What the part of a pipeline that denoises is called."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network without weights.

    Args:
        kind: name of its class in diffusers.
        config: arguments of the class; those that are absent have diffusers' defaults.
        text_tokens: length of the prompts that its pipelines give it; 0 for classes.
        path: the file that says so, for messages; None: none does.
    """

    kind: str
    config: Mapping[str, Any]
    text_tokens: int = 0
    path: Path | None = None

    def build(self, device: torch.device | str = "meta") -> nn.Module:
        """The network in evaluation mode, on the meta device unless told otherwise (random weights there).

        Raises:
            ValueError: none can be built from the configuration.
        """
        import diffusers

        with torch.device(device):
            network: nn.Module = built(getattr(diffusers, self.kind), self.config, self.path or self.kind)
        return network.eval()


def read_architecture(path: Path) -> Architecture:
    """The network that a `config.json` describes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or describes no network of diffusers.
    """
    import diffusers

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so {path.parent} is no model of diffusers")
    config = read_json(path)
    kind = config.get("_class_name")
    if kind is None:
        raise ValueError(f"{path}: no _class_name, so no configuration of diffusers")
    found = getattr(diffusers, str(kind), None)
    if not isinstance(found, type) or not issubclass(found, diffusers.ModelMixin):
        raise ValueError(f"{path}: _class_name {kind!r} is no model of diffusers")
    plain = {name: value for name, value in config.items() if not name.startswith("_")}
    return Architecture(found.__name__, plain, _text_tokens(plain), path)


def built(kind: Any, config: Mapping[str, Any], where: Path | str) -> Any:
    """A network or scheduler of a class of diffusers, which passes over what it does not know in a configuration.

    Raises:
        ValueError: none can be built from it.
    """
    try:
        with without_warnings():
            return kind.from_config(dict(config))
    except Exception as error:  # each class stumbles in its own way over what a file may hold
        raise ValueError(f"{where}: no {kind.__name__} can be built from it ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """What an error of a library says, in a line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def without_warnings() -> Iterator[None]:
    """While the context is open, diffusers says nothing: what matters is raised, or known."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _text_tokens(config: Mapping[str, Any]) -> int:
    """Of the pipelines that such networks come in; 16 are those of the packaged sentence encoder."""
    if config.get("cross_attention_dim") == 384:
        return 16
    return 77 if config.get("cross_attention_dim") or config.get("joint_attention_dim") else 0


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
