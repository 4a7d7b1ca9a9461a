"""Tiny random vision transformers of every family, for tests of what does not need training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

_VIT: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 5,
}
_DINO: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 5,
}
_SWIN: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
    "num_labels": 5,
}
_SAM: dict[str, Any] = {
    "hidden_size": 16,
    "output_channels": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 2,
    "window_size": 3,
    "global_attn_indexes": (2,),
    "mlp_dim": 20,
}


def vit(**changes: Any) -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**_VIT | changes))


def vit_backbone(**changes: Any) -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**_VIT | changes), add_pooling_layer=False)


def deit(**changes: Any) -> nn.Module:
    return transformers.DeiTForImageClassification(transformers.DeiTConfig(**_VIT | changes))


def deit_teacher(**changes: Any) -> nn.Module:
    return transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**_VIT | changes))


def dinov2(**changes: Any) -> nn.Module:
    return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**_DINO | changes))


def dinov2_swiglu(**changes: Any) -> nn.Module:
    return dinov2(**{"use_swiglu_ffn": True} | changes)


def dinov2_registers(**changes: Any) -> nn.Module:
    config = transformers.Dinov2WithRegistersConfig(**_DINO | {"num_register_tokens": 3} | changes)
    return transformers.Dinov2WithRegistersForImageClassification(config)


def swin(**changes: Any) -> nn.Module:
    return transformers.SwinForImageClassification(transformers.SwinConfig(**_SWIN | changes))


def sam(**changes: Any) -> nn.Module:
    return transformers.SamVisionModel(transformers.SamVisionConfig(**_SAM | changes))


def whole_sam() -> nn.Module:
    """SAM with its prompt encoder and mask decoder, all random."""
    small = {"hidden_size": 16, "mlp_dim": 8}
    config = transformers.SamConfig(
        vision_config=_SAM | {"num_pos_feats": 8},
        prompt_encoder_config={"hidden_size": 16, "image_size": 16, "patch_size": 2, "mask_input_channels": 4},
        mask_decoder_config=small | {"num_attention_heads": 2, "iou_head_hidden_dim": 8},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = transformers.SamModel(config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


class TorchViT(nn.Module):
    """A ViT of torch's own encoder layers."""

    def __init__(self, width: int = 24, norm_first: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 5, width))
        layer = nn.TransformerEncoderLayer(width, 4, 20, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 5))

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
        return self.head(self.encoder(tokens)[:, 0])


class FusedAttention(nn.Module):
    """Attention with one layer for queries, keys and values, in the form of timm's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


class FusedMlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class FusedBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = FusedAttention(width, 4)
        self.ls1, self.ls2 = Scale(width), Scale(width)
        self.mlp = FusedMlp(width, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class FusedViT(nn.Module):
    """A ViT in the form of timm's, whose layers are in a `Sequential`."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 6, 2, 2), nn.GELU(), nn.Conv2d(6, width, 2, 2))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.Sequential(*(FusedBlock(width) for _ in range(3)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "vit": vit,
    "deit": deit,
    "deit_teacher": deit_teacher,
    "dinov2": dinov2,
    "dinov2_swiglu": dinov2_swiglu,
    "dinov2_registers": dinov2_registers,
    "swin": swin,
    "sam": sam,
    "torch": TorchViT,
    "fused": FusedViT,
}


def random_model(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model in evaluation mode whose every parameter is random; no global random state is touched."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family](**changes)
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, std=0.2 if parameter.dim() > 1 else 0.3)
            if "norm" in name and name.endswith("weight") and parameter.dim() == 1:
                parameter.data += 1
    return model.eval()


def inputs(family: str, batch: int = 2) -> dict[str, Tensor]:
    """Pixels for the family's tiny model."""
    size = 16 if family in ("swin", "sam") else 8
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels}


def run(family: str) -> Callable[[Any], Tensor]:
    """Runs a model, or a `Network` of it, on the family's pixels: its logits, or its features where it has none."""
    arguments = inputs(family)

    @torch.no_grad()
    def forward(model: Any) -> Tensor:
        return first_output(model(**arguments))

    return forward


def first_output(output: Any) -> Tensor:
    """The tensor that a vision transformer is for."""
    return output if isinstance(output, Tensor) else output[0]
