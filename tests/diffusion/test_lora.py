from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from diffusion.lora import renamed_lora, slice_lora
from diffusion.units import Kind, prunable
from secateur.surgery import Network
from tests.diffusion.models import random_model, run

NAMES = {
    "peft": ("unet.{}", ".lora_A.weight", ".lora_B.weight"),
    "diffusers": ("unet.{}", ".lora.down.weight", ".lora.up.weight"),
    "kohya": ("lora_unet_{}", ".lora_down.weight", ".lora_up.weight"),
}


def random_lora(model: nn.Module, style: str = "peft") -> dict[str, Tensor]:
    """Rank 2 on every linear layer and convolution."""
    generator = torch.Generator().manual_seed(3)
    pattern, down, up = NAMES[style]
    lora = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            key = pattern.format(name.replace(".", "_") if style == "kohya" else name)
            reads = (2, *layer.weight.shape[1:])
            writes = (layer.weight.shape[0], 2, *([1, 1] if layer.weight.dim() == 4 else []))
            lora[key + down] = torch.randn(reads, generator=generator) * 0.05
            lora[key + up] = torch.randn(writes, generator=generator) * 0.05
    return lora


@torch.no_grad()
def fuse(model: nn.Module, lora: Mapping[str, Tensor], style: str = "peft") -> None:
    """Add B A to the weights; a layer whose tensors are missing stays as it is."""
    pattern, down, up = NAMES[style]
    for name, layer in model.named_modules():
        key = pattern.format(name.replace(".", "_") if style == "kohya" else name)
        weight = getattr(layer, "weight", None)
        if key + down in lora and isinstance(weight, Tensor):
            change = lora[key + up].flatten(1) @ lora[key + down].flatten(1)
            weight += change.reshape(weight.shape)


def cut(model: nn.Module, kinds: tuple[Kind, ...]) -> Network:
    target = prunable(model, kinds, min_keep=0)
    generator = torch.Generator().manual_seed(0)
    keep = {group.name: torch.rand(group.size, generator=generator) < 0.6 for group in target.groups()}
    return target.cut(keep)


@pytest.mark.parametrize(
    ("family", "kinds", "style"),
    [
        ("unet", ("heads", "neurons", "channels"), "peft"),
        ("unet", ("transformer_blocks", "operators"), "kohya"),
        ("flux", ("heads", "neurons", "modulation", "transformer_blocks"), "diffusers"),
        ("sd3", ("heads", "neurons", "attentions"), "kohya"),
    ],
)
def test_cutting_and_slicing_commute(family: str, kinds: tuple[Kind, ...], style: str) -> None:
    dense, fused = random_model(family), random_model(family)
    lora = random_lora(dense, style)
    fuse(fused, lora, style)
    pruned = cut(dense, kinds)
    sliced = slice_lora(lora, pruned, dense)
    assert 0 < sum(tensor.numel() for tensor in sliced.values()) < sum(tensor.numel() for tensor in lora.values())
    fuse(pruned.module, sliced, style)
    expected = run(family)(cut(fused, kinds))
    torch.testing.assert_close(
        run(family)(pruned), expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max()))
    )


def test_foreign_tensors_are_refused() -> None:
    dense = random_model("dit")
    pruned = cut(dense, ("heads",))
    with pytest.raises(ValueError, match="belongs to no layer"):
        slice_lora({"text_encoder.layers.0.lora_A.weight": torch.ones(2, 4)}, pruned, dense)
    with pytest.raises(ValueError, match="does not fit"):
        slice_lora({"transformer_blocks.0.attn1.to_q.lora_B.weight": torch.ones(5, 2)}, pruned, dense)
    alpha = {"transformer_blocks.0.attn1.to_q.alpha": torch.tensor(4.0)}
    assert slice_lora(alpha, pruned, dense) == alpha


def test_names_move_with_their_blocks() -> None:
    renamed = {"transformer_blocks.1": "transformer_blocks.0", "transformer_blocks.11": "transformer_blocks.10"}
    lora = {
        "transformer.transformer_blocks.1.ff.lora_A.weight": torch.ones(1),
        "transformer.transformer_blocks.11.ff.lora_A.weight": torch.ones(1),
        "lora_unet_transformer_blocks_1_ff.lora_down.weight": torch.ones(1),
        "transformer.single_transformer_blocks.3.lora_A.weight": torch.ones(1),
    }
    assert list(renamed_lora(lora, renamed)) == [
        "transformer.transformer_blocks.0.ff.lora_A.weight",
        "transformer.transformer_blocks.10.ff.lora_A.weight",
        "lora_unet_transformer_blocks_0_ff.lora_down.weight",
        "transformer.single_transformer_blocks.3.lora_A.weight",
    ]
