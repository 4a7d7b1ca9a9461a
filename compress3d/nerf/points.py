"""A field's surfaces as coloured points, to start splats from: RadSplat's prior (arXiv 2403.13806, section 4.2)."""

from __future__ import annotations

import os

import numpy as np
import torch

from compress3d.cameras import Cameras
from compress3d.captures.capture import StartPoints
from compress3d.nerf.field import Field
from compress3d.nerf.rays import rays_of
from compress3d.nerf.render import Picture, render
from secateur.console import Report, silent
from secateur.files import replacing_file

_OPAQUE = 0.5
_ROW = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


@torch.no_grad()
def surface_points(
    field: Field, cameras: Cameras, count: int, *, seed: int = 0, report: Report = silent
) -> StartPoints:
    """Points where rays through random pixels end, on average of their weights, with the colours that they see.

    Args:
        field: to look at.
        cameras: from where.
        count: the most points; fewer where fewer pixels are opaque.
        seed: of the pixels.
        report: told how much is done.

    Raises:
        ValueError: `count` is below 1, or no pixel of any camera is opaque.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    places, colors = [], []
    for view in range(len(cameras)):
        picture = Picture(*(one.cpu() for one in render(field, cameras, view, (0.0, 0.0, 0.0))))
        opacities = picture.opacities.flatten()
        solid = (opacities > _OPAQUE).nonzero()[:, 0]
        directions = rays_of(cameras, view, field.box).directions[solid]
        places.append(cameras.positions[view] + directions * picture.depths.flatten()[solid, None])
        colors.append(picture.image.flatten(0, 1)[solid] / opacities[solid, None])
        report((view + 1) / len(cameras), "looking for surfaces")
    xyz, rgb = torch.cat(places), torch.cat(colors)
    if not len(xyz):
        raise ValueError(f"no pixel of {len(cameras)} cameras is opaque: there are no surfaces to start from")
    chosen = torch.randperm(len(xyz), generator=torch.Generator().manual_seed(seed))[:count]
    return StartPoints(xyz[chosen].contiguous(), (rgb[chosen].clamp(0, 1) * 255 + 0.5).byte())


def save_points(points: StartPoints, path: str | os.PathLike[str]) -> int:
    """Write points as a binary PLY in the place of `path`, as `read_points` reads it; returns the bytes."""
    rows = np.empty(len(points), _ROW)
    rows["xyz"], rows["rgb"] = points.xyz.numpy(), points.rgb.numpy()
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    content = "\n".join([*lines, "end_header\n"]).encode() + rows.tobytes()
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)
    return len(content)
