"""A field as a teacher: photographs of itself from all around, to recover by or to train splats on."""

from __future__ import annotations

import math

import numpy as np
import torch

from compress3d.cameras import Cameras
from compress3d.captures import Capture
from compress3d.nerf.field import Field
from compress3d.nerf.rays import Box
from compress3d.nerf.render import render_each
from compress3d.splats.views import UP, Vector, look_at
from secateur.console import Report, silent

OWN_RENDERS = "the field's own renders"

_DISTANCE, _EVERY = 1.7, 8


def views_around(box: Box, count: int, size: int, up: Vector = UP) -> Cameras:
    """Cameras all over a sphere around a box, evenly (a Fibonacci lattice), that each show all of it.

    Args:
        box: what to look at.
        count: number of cameras.
        size: of the square images, in pixels.
        up: world direction that is up in the images.

    Raises:
        ValueError: `count` or `size` is below 1.
    """
    if count < 1 or size < 1:
        raise ValueError(f"count and size must be at least 1, got {count} and {size}")
    index = np.arange(count)
    height = 1 - (2 * index + 1) / count
    turn = index * math.pi * (3 - math.sqrt(5))
    flat = np.sqrt(1 - height**2)
    directions = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1)
    centre = np.array(box.low) + box.side / 2
    viewmats = look_at(
        centre + _DISTANCE * box.side * directions, np.broadcast_to(centre, (count, 3)), _aside(up, directions)
    )
    focal = size * _DISTANCE / 1.2
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float32)
    return Cameras(viewmats, K.repeat(count, 1, 1), size, size)


def _aside(up: Vector, directions: np.ndarray) -> Vector:
    """`up`, turned a little where a camera looks along it."""
    axis = np.array(up) / np.linalg.norm(up)
    if float(np.abs(directions @ axis).max()) < 1 - 1e-6:
        return up
    x, y, z = (axis + 1e-2 * np.roll(axis, 1)).tolist()
    return (x, y, z)


def teacher_capture(field: Field, cameras: Cameras, report: Report = silent) -> Capture:
    """What cameras see of a field, as photographs with alpha, of which every eighth is to judge by.

    RadSplat trains splats on such views of a radiance field (Niemeyer et al., arXiv 2403.13806, section 4.1).

    Args:
        field: the teacher.
        cameras: C cameras.
        report: told how much is done.
    """
    images, alphas = [], []
    for index, picture in enumerate(render_each(field, cameras, (0.0, 0.0, 0.0))):
        pixels = torch.cat([picture.image, picture.opacities[..., None]], dim=2).clamp(0, 1)
        pixels[..., :3] /= pixels[..., 3:].clamp_min(1e-6)
        stored = (pixels.clamp(0, 1) * 255 + 0.5).byte().cpu()
        images.append(stored[..., :3])
        alphas.append(stored[..., 3])
        report((index + 1) / len(cameras), "rendering the teacher's views")
    every = torch.arange(len(cameras))
    judging = (every % _EVERY == _EVERY - 1) if len(cameras) >= _EVERY else torch.zeros(len(cameras), dtype=torch.bool)
    return Capture(
        OWN_RENDERS,
        cameras,
        torch.stack(images),
        tuple(f"{index:03d}.png" for index in range(len(cameras))),
        every[~judging],
        every[judging],
        torch.stack(alphas),
    )
