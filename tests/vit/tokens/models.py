"""Small vision transformers of every kind, 16 patches of 4x4 pixels each, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit.tokens.noise import seeded_weights

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 1,
    "num_labels": 5,
}


def _lively(build: Callable[[], nn.Module]) -> nn.Module:
    """Always the same model. Its weights are larger than a fresh one's: attention is uneven, and layers matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad(), seeded_weights(0):
        model = build()
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.2 if parameter.dim() > 1 else 0.1))
    return model.eval()


def vit(**changes: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return _lively(lambda: ViTForImageClassification(ViTConfig(**_SIZES | {"intermediate_size": 48} | changes)))


def deit(**changes: Any) -> nn.Module:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    return _lively(
        lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**_SIZES | {"intermediate_size": 48} | changes))
    )


def dinov2(**changes: Any) -> nn.Module:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    return _lively(lambda: Dinov2ForImageClassification(Dinov2Config(**_SIZES | {"mlp_ratio": 2} | changes)))


def dinov2_with_registers(**changes: Any) -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    config = Dinov2WithRegistersConfig(**_SIZES | {"mlp_ratio": 2, "use_swiglu_ffn": True} | changes)
    return _lively(lambda: Dinov2WithRegistersForImageClassification(config))


def segmenter() -> nn.Module:
    from transformers import ViTConfig

    from vit.tasks.segmenter import ViTForPatchSegmentation

    config = ViTConfig(**_SIZES | {"intermediate_size": 48, "attn_implementation": "eager"})
    return _lively(lambda: ViTForPatchSegmentation(config))


class PlainViT(nn.Module):
    """A vision transformer of torch's own layers, without a class token: logits are of the mean patch."""

    def __init__(self, norm_first: bool = True, batch_first: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 4, 4)
        self.positions = nn.Parameter(torch.zeros(1, 16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 4, nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)
        self.batch_first = batch_first

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        if self.batch_first:
            return self.head(self.encoder(tokens, src_key_padding_mask=padding)[:, 0])
        return self.head(self.encoder(tokens.transpose(0, 1), src_key_padding_mask=padding)[0])


def plain(**options: Any) -> nn.Module:
    return _lively(lambda: PlainViT(**options))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "vit": vit,
    "deit": deit,
    "dinov2": dinov2,
    "dinov2_with_registers": dinov2_with_registers,
    "plain": plain,
    "plain, norm last": lambda: plain(norm_first=False),
    "plain, tokens first": lambda: plain(batch_first=False),
}
PREFIX = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 5}


def logits(output: Any) -> Tensor:
    """What a model says of the classes, whatever it calls it."""
    return output if isinstance(output, Tensor) else output.logits


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
