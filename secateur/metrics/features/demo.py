"""The two classifiers that come with the package, and the images that they have not seen."""

from __future__ import annotations

from pathlib import Path

import torch

from secateur.datasets import Labelled, digits
from secateur.metrics.features.classifier import ClassifierFeatures

WEIGHTS = Path(__file__).parent / "weights"
FASHION, DIGITS = "fashion-cnn", "digits-cnn"


def fashion_features() -> ClassifierFeatures:
    """A classifier of Fashion-MNIST (28x28) trained on its training split; the test split is unseen."""
    return ClassifierFeatures.load(WEIGHTS / f"{FASHION}.safetensors")


def digit_features() -> ClassifierFeatures:
    """A classifier of scikit-learn's digits (8x8) trained on every second image; `unseen_digits` has the others."""
    return ClassifierFeatures.load(WEIGHTS / f"{DIGITS}.safetensors")


def seen_digits() -> Labelled:
    """The 899 digits at even places: what `digit_features` was trained on."""
    held = digits()
    return held.subset(torch.arange(0, len(held), 2))


def unseen_digits() -> Labelled:
    """The 898 digits at odd places: references and floors of distances come from these.

    A network's features of its own training images lie tighter than those of others, so distances to them mislead.
    """
    held = digits()
    return held.subset(torch.arange(1, len(held), 2))
