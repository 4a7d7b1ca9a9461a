"""Images for tests: random ones, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from secateur.training import generator_at
from vit.data import LabelledImages


def noise(count: int = 12, channels: int = 3, size: int = 8, classes: int = 5, seed: int = 0) -> LabelledImages:
    """Images of random bytes, the classes in turn."""
    generator = generator_at(seed, 0)
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(count) % classes, tuple("abcdefghijkl"[:classes]))


def digit_images() -> LabelledImages:
    """1,797 grey images of 8x8 pixels."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    from secateur.datasets import digits

    return LabelledImages.of(digits())


def seeded_network(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network as it begins, from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()
