"""Small cameras around the origin, and the plain torch reference of the soft silhouette."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.mesh.kernels import LEAST
from compress3d.splats.views import look_at


def cameras_at(positions: list[tuple[float, float, float]], size: int = 48, focal: float = 1.4) -> Cameras:
    """Cameras that look at the origin; `focal` in units of the image's side."""
    eyes = np.array(positions, dtype=float)
    K = torch.tensor([[focal * size, 0, size / 2], [0, focal * size, size / 2], [0, 0, 1]])
    viewmats = torch.as_tensor(look_at(eyes, eyes * 0)).float()
    return Cameras(viewmats, K.expand(len(eyes), 3, 3).contiguous(), size, size)


def ring_of_cameras(count: int = 6, distance: float = 4.0, size: int = 48, tilt: float = 0.3) -> Cameras:
    """Cameras around the z axis, up and down in turn, and one that looks along it."""
    turns = [index * 2 * math.pi / count for index in range(count)]
    around = [
        (
            distance * math.cos(turn) * math.cos(height),
            distance * math.sin(turn) * math.cos(height),
            distance * math.sin(height),
        )
        for turn, height in zip(turns, [tilt, -tilt] * count, strict=False)
    ]
    return cameras_at([*around, (0.001, 0.0, distance)], size)


def reference_coverage(triangles: Tensor, sigma: float, width: int, height: int) -> Tensor:
    """(F, H, W) coverage of (F, 3, 2) triangles, by the equation: sigmoid(s d^2 / sigma), no strips, no lists."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).to(triangles)
    squares, sides = [], []
    for edge in range(3):
        start, end = triangles[:, edge, None, None], triangles[:, (edge + 1) % 3, None, None]
        along, offset = end - start, pixels - start
        t = ((offset * along).sum(-1) / (along * along).sum(-1)).clamp(0, 1)[..., None]
        squares.append((offset - t * along).square().sum(-1))
        sides.append(along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0])
    signs = torch.stack(sides)
    inside = (signs > 0).all(dim=0) | (signs < 0).all(dim=0)
    coverage = torch.sigmoid(torch.where(inside, 1.0, -1.0) * torch.stack(squares).amin(dim=0) / sigma)
    return torch.where(coverage >= LEAST, coverage, 0.0)


def reference_silhouette(triangles: Tensor, strengths: Tensor, sigma: float, width: int, height: int) -> Tensor:
    """(H, W) 1 - product of 1 - strength D."""
    coverage = reference_coverage(triangles, sigma, width, height)
    return 1 - (1 - strengths[:, None, None] * coverage).prod(dim=0)
