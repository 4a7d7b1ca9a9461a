"""Scenes for the tests of the formats."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene


def random_scene(count: int, degree: int = 0, seed: int = 0) -> SplatScene:
    """`count` Gaussians as a trained scene has them: a few units wide, small, of colours mostly within the gamut."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return SplatScene(
        means=2 * normal(count, 3),
        quats=normal(count, 4),
        scales=normal(count, 3) - 4,
        opacities=3 * normal(count),
        sh0=0.7 * normal(count, 1, 3),
        shN=0.2 * normal(count, SH_COEFFICIENTS[degree], 3),
    )


@pytest.fixture
def make_scene() -> Callable[..., SplatScene]:
    """`make_scene(count, degree=0, seed=0)`."""
    return random_scene
