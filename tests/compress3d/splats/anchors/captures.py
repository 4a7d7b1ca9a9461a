"""A capture of a few Gaussians seen from a ring of cameras, and fields of a size that trains in seconds."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from compress3d.cameras import Cameras
from compress3d.captures import Capture
from compress3d.splats.anchors import ForestField, ScaffoldField
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import look_at

SIZE, VIEWS = 48, 12


def ring(count: int = VIEWS, size: int = SIZE, turn: float = 0.0) -> Cameras:
    """Cameras around the origin at the distance 4."""
    angles = turn + np.arange(count) * 2 * math.pi / count
    positions = np.stack([4 * np.cos(angles), -1 + 0.5 * np.sin(3 * angles), 4 * np.sin(angles)], axis=1)
    K = torch.tensor([[1.4 * size, 0, size / 2], [0, 1.4 * size, size / 2], [0, 0, 1]])
    return Cameras(look_at(positions, np.zeros((count, 3))), K.expand(count, 3, 3), size, size)


@cache
def blobs() -> SplatScene:
    """A dozen opaque, colourful Gaussians."""
    generator = torch.Generator().manual_seed(4)
    count = 12
    return SplatScene(
        means=torch.rand(count, 3, generator=generator) * 1.6 - 0.8,
        quats=torch.randn(count, 4, generator=generator),
        scales=torch.rand(count, 3, generator=generator) * 0.7 - 2.2,
        opacities=torch.full((count,), 3.0),
        sh0=torch.rand(count, 1, 3, generator=generator) * 3 - 1.5,
        shN=torch.zeros(count, 0, 3),
    )


@cache
def capture() -> Capture:
    """Photographs of `blobs` on white, every fourth of them to test on."""
    cameras = ring()
    images = (render(blobs(), cameras).clamp(0, 1) * 255).round().to(torch.uint8)
    index = torch.arange(VIEWS)
    names = tuple(f"{view:02d}.png" for view in range(VIEWS))
    return Capture("blobs", cameras, images, names, index[index % 4 > 0], index[index % 4 == 0])


def points(count: int = 60, seed: int = 0) -> torch.Tensor:
    """Around the blobs."""
    generator = torch.Generator().manual_seed(seed)
    near = blobs().means[torch.randint(len(blobs()), (count,), generator=generator)]
    return near + 0.15 * torch.randn(count, 3, generator=generator)


def scaffold(count: int = 60, offsets: int = 4, seed: int = 0) -> ScaffoldField:
    return ScaffoldField.from_points(points(count), voxel_size=0.1, features=8, offsets=offsets, hidden=16, seed=seed)


def forest(count: int = 120, seed: int = 0) -> ForestField:
    return ForestField.from_points(points(count), voxel_size=0.15, inner_features=8, root_features=8, seed=seed)
