"""The demo models before training: small networks of transformers' own classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import ViTConfig, ViTForImageClassification

from secateur.datasets.fashion_mnist import CLASSES
from vit.tasks.segmenter import ViTForPatchSegmentation


def fashion_vit() -> ViTForImageClassification:
    """28x28 pixels in 49 patches of 4x4 and a class token, 5 layers of width 96 with 6 heads."""
    return ViTForImageClassification(_config(28, 4, CLASSES, width=96, layers=5, heads=6, spread=0.02))


def digits_vit() -> ViTForImageClassification:
    """8x8 pixels in 16 patches of 2x2 and a class token, 3 layers of width 32 with 4 heads."""
    return ViTForImageClassification(_config(8, 2, [str(digit) for digit in range(10)], width=32, layers=3, heads=4))


def canvas_vit(size: int, patch_size: int, classes: Sequence[str]) -> ViTForImageClassification:
    """Canvases of several things, one of them marked; 4 layers of width 64 with 4 heads.

    Args:
        size: height and width of a canvas in pixels.
        patch_size: of a patch; divides `size`.
        classes: their names.
    """
    return ViTForImageClassification(_config(size, patch_size, classes, width=64, layers=4, heads=4))


def canvas_segmenter(size: int, patch_size: int, classes: Sequence[str]) -> ViTForPatchSegmentation:
    """The same with a class for each patch, scaled up to pixels.

    Args:
        size: height and width of a canvas in pixels.
        patch_size: of a patch; divides `size`.
        classes: their names, the background's first.
    """
    return ViTForPatchSegmentation(_config(size, patch_size, classes, width=64, layers=4, heads=4))


def _config(
    size: int, patch_size: int, classes: Sequence[str], width: int, layers: int, heads: int, spread: float = 0.1
) -> Any:
    """Grey images, feed-forwards of twice the width, no dropout.

    Weights begin with a deviation of `spread`, five times what transformers has for networks ten times wider: with that
    narrow ones learn slowly at first (the digits: 87 % instead of 97 % after 400 steps).
    """
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=spread,
        image_size=size,
        patch_size=patch_size,
        num_channels=1,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
