"""Trained models that come with the package: small enough to prune and to sample on a CPU, without a download.

Each is a folder of diffusers, with a card (README.md) that says how it was made and how good it is.
`scripts/train_demo_diffusion.py` trains them.
"""

from __future__ import annotations

from pathlib import Path

from diffusion.pipeline import ClassToImage, TextToImage

MODELS = Path(__file__).with_name("models")
"""The folders' folder."""


def digits_unet() -> ClassToImage:
    """A UNet that draws handwritten digits of 8x8 pixels by class."""
    return ClassToImage.from_pretrained(MODELS / "digits-unet")


def digits_dit() -> ClassToImage:
    """A diffusion transformer that draws handwritten digits of 8x8 pixels by class."""
    return ClassToImage.from_pretrained(MODELS / "digits-dit")


def fashion_unet() -> TextToImage:
    """A UNet with cross-attention that draws clothes of 28x28 pixels from prompts: "a photo of an ankle boot"."""
    return TextToImage.from_pretrained(MODELS / "fashion-unet")


def fashion_dit() -> ClassToImage:
    """A diffusion transformer that draws clothes of 28x28 pixels by class."""
    return ClassToImage.from_pretrained(MODELS / "fashion-dit")
