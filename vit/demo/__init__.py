"""A trained vision transformer that comes with the package: small enough to prune on a CPU, without a download.

It is a folder of transformers, with a card (README.md) that says how it was made and how good it is.
`scripts/train_demo_vit.py` trains it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

    from vit.data import LabelledImages

MODELS = Path(__file__).with_name("models")
"""The folders' folder."""

HELD_OUT = 5000
"""Training images of Fashion-MNIST that no demo model was trained on: what choices are made with."""


def fashion_vit() -> ViTForImageClassification:
    """A ViT that says which of ten pieces of clothing a picture of 28x28 pixels shows: 49 patches and a class token.

    Raises:
        FileNotFoundError: the model is not among the package's files.
    """
    from transformers import ViTForImageClassification

    folder = MODELS / "fashion-vit"
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} is absent: scripts/train_demo_vit.py fashion makes it")
    return ViTForImageClassification.from_pretrained(folder, dtype="float32", local_files_only=True).eval()


def fashion_splits() -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    """Fashion-MNIST for the demo model: (what it was trained on, what choices are made with, what it is judged by).

    Raises:
        FileNotFoundError: Fashion-MNIST is absent; the message says how to get it.
    """
    from secateur.datasets import fashion_mnist
    from vit.data import LabelledImages, split

    training, validation = split(LabelledImages.of(fashion_mnist("train")), HELD_OUT)
    return training, validation, LabelledImages.of(fashion_mnist("test"))
