"""Embeddings of a CLIP model that lies in a local folder: for CMMD and CLIP score."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from secateur.metrics.features.interface import check_images, hash_of_weights

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of RGB in [0, 1] over CLIP's training images; a folder's preprocessor_config.json may have others."""


@dataclass(frozen=True)
class ClipFeatures:
    """A CLIP model of transformers, as `Features` and for captions.

    Images are scaled bicubically, with antialiasing, so that the shorter side fits the model, and cut at the centre.
    CMMD's published figures are those of clip-vit-large-patch14-336.

    Args:
        name: of the backbone; stands beside each score.
        model: transformers' CLIPModel, in evaluation mode.
        tokenizer: its tokenizer; None where the folder has none, which CLIP score needs.
        mean: of each channel, taken away from pixels in [0, 1].
        std: by which each channel is then divided.
    """

    name: str
    model: Any
    tokenizer: Any = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @classmethod
    def load(cls, folder: str | os.PathLike[str], name: str | None = None) -> Self:
        """The model in a folder that transformers wrote, with safetensors.

        Args:
            folder: with config.json and model.safetensors, and a tokenizer for CLIP score.
            name: of the backbone; None: the folder's.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks a file.
            ValueError: what it holds is no CLIP model.
        """
        folder = Path(folder)
        for file in ("config.json", "model.safetensors"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder}: no {file}; a CLIP folder has config.json and model.safetensors")
        if json.loads((folder / "config.json").read_text()).get("model_type") != "clip":
            raise ValueError(f"{folder}: config.json is not that of a CLIP model")
        from transformers import CLIPModel, CLIPTokenizer

        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenized = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json"))
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True) if tokenized else None
        mean, std = _normalisation(folder)
        return cls(name or folder.resolve().name, model.requires_grad_(False).eval(), tokenizer, mean, std)

    @property
    def dimensions(self) -> int:
        return self.model.config.projection_dim

    @cached_property
    def weights_sha256(self) -> str:
        return hash_of_weights(self.model.state_dict())

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "N C H W"], /) -> Float[Tensor, "N D"]:
        """The embeddings of images in [0, 1], of one channel or three; not of unit length.

        Raises:
            ValueError: the images are not (N, 1, H, W) or (N, 3, H, W), or not finite.
        """
        pooled = self.model.get_image_features(pixel_values=self._prepared(images))
        return getattr(pooled, "pooler_output", pooled)

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> tuple[Float[Tensor, "N D"], int]:
        """The embeddings of captions, and how many of them were cut for being longer than the model reads.

        Raises:
            ValueError: the folder had no tokenizer, or there are no captions.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.name}: the folder has no tokenizer, so captions cannot be read")
        if not texts:
            raise ValueError("no captions")
        longest = self.model.config.text_config.max_position_embeddings
        cut = sum(len(self.tokenizer(text)["input_ids"]) > longest for text in texts)
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        kept = {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        pooled = self.model.get_text_features(**kept)
        return getattr(pooled, "pooler_output", pooled), cut

    def _prepared(self, images: Tensor) -> Tensor:
        check_images(images)
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {tuple(images.shape)}")
        side = self.model.config.vision_config.image_size
        height, width = images.shape[2:]
        scale = side / min(height, width)
        size = [max(side, round(height * scale)), max(side, round(width * scale))]
        images = images.to(self.model.device, torch.float32).clamp(0.0, 1.0).expand(-1, 3, -1, -1)
        scaled = interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 1.0)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        cut = scaled[..., top : top + side, left : left + side]
        mean, std = (torch.tensor(values, device=cut.device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return ((cut - mean) / std).to(self.model.dtype)


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    return tuple(settings.get("image_mean", MEAN)), tuple(settings.get("image_std", STD))
