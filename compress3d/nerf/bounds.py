"""Where in the world a captured object is: a cube around it, and the cells that its silhouettes leave."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.occupancy import Occupancy
from compress3d.nerf.rays import Box

_COARSE = 64
_MARGIN = 0.02
"""Share of the cube that is left free around what the silhouettes leave."""

_PIECE = 1 << 18
_MOST_VIEWS = 60
"""Photographs that carve, evenly chosen: more change little."""


def box_of(capture: Capture) -> Box:
    """A cube that holds what the training photographs show.

    Around the point that the optical axes come closest to. Where the photographs have alpha: their visual hull
    (Laurentini 1994), as far as all cameras see. Else what is behind must have its place, too: the cameras' own cube,
    and as much again on every side, as instant-ngp's `aabb_scale` makes room.

    Raises:
        ValueError: there are no training photographs.
    """
    seen = capture.subset(capture.train)
    if not len(seen):
        raise ValueError(f"{capture.name}: no photographs to train on")
    loose = _seen_by_all(seen)
    if seen.alphas is None:
        return _around_cameras(seen, loose)
    hull = visual_hull(seen, loose, _COARSE)
    if not bool(hull.any()):
        return loose
    cells = hull.nonzero().flip(1)
    low, high = cells.amin(dim=0) / _COARSE, (cells.amax(dim=0) + 1) / _COARSE
    side = float((high - low).max()) * (1 + 2 * _MARGIN)
    corner = torch.tensor(loose.low) + loose.side * ((low + high) / 2 - side / 2)
    x, y, z = corner.tolist()
    return Box((x, y, z), loose.side * side)


def possible_cells(capture: Capture, box: Box, resolution: int) -> Occupancy:
    """The cells of a box that the photographs' silhouettes leave, where they have alpha; else all."""
    if capture.alphas is None:
        return Occupancy(resolution)
    hull = visual_hull(capture, box, resolution // 2)
    for dim in range(3):
        hull = hull.repeat_interleave(2, dim)
    return Occupancy(resolution, hull)


def visual_hull(capture: Capture, box: Box, resolution: int) -> Bool[Tensor, "R R R"]:
    """Cells (by z, y, x) that no photograph shows to be empty: Laurentini 1994.

    A cell stays unless a photograph in which it lies has no pixel with alpha within the cell's size around its centre.

    Args:
        capture: its photographs with alpha; sixty of them, if there are more.
        box: the cube.
        resolution: cells a side.

    Raises:
        ValueError: the photographs have no alpha.
    """
    if capture.alphas is None:
        raise ValueError(f"{capture.name}: a visual hull needs photographs with alpha")
    edges = (torch.arange(resolution) + 0.5) / resolution
    radius = box.side * math.sqrt(3) / 2 / resolution
    stays = torch.ones(resolution**3, dtype=torch.bool)
    for view in torch.linspace(0, len(capture) - 1, min(_MOST_VIEWS, len(capture))).round().long().tolist():
        away = torch.from_numpy(distance_transform_edt((capture.alphas[view] == 0).numpy())).float()
        viewmat, K = capture.cameras.viewmats[view], capture.cameras.Ks[view]
        for piece in stays.nonzero()[:, 0].split(_PIECE):
            rows = piece // resolution
            cells = torch.stack([piece % resolution, rows % resolution, rows // resolution], dim=1)
            points = edges[cells] * box.side + torch.tensor(box.low)
            stays[piece] = _may_be_seen(points, radius, viewmat, K, away)
    return stays.reshape(resolution, resolution, resolution)


def _seen_by_all(capture: Capture) -> Box:
    """The cube around the sphere that cameras see whole, or around the cameras where they see none."""
    cameras = capture.cameras
    positions, axes = cameras.positions.double(), cameras.viewmats[:, 2, :3].double()
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    nearest = torch.linalg.lstsq(across.sum(dim=0), (across @ positions[:, :, None]).sum(dim=0)).solution[:, 0]
    distance = ((nearest - positions) * axes).sum(dim=1)
    half = cameras.Ks.new_tensor([cameras.width / 2, cameras.height / 2]) / cameras.Ks[:, [0, 1], [0, 1]]
    radius = float((distance * torch.sin(torch.atan(half.amin(dim=1)).double())).median())
    if not radius > 1e-3 * cameras.extent or not math.isfinite(radius):
        nearest, radius = positions.mean(dim=0), 2 * cameras.extent
    x, y, z = (nearest - radius).tolist()
    return Box((x, y, z), 2 * max(radius, 1e-6))


def _around_cameras(capture: Capture, loose: Box) -> Box:
    """A cube with the same middle that reaches twice as far as the farthest camera."""
    middle = torch.tensor(loose.low) + loose.side / 2
    half = max(2 * float((capture.cameras.positions - middle).norm(dim=1).max()), loose.side / 2)
    x, y, z = (middle - half).tolist()
    return Box((x, y, z), 2 * half)


def _may_be_seen(
    points: Float[Tensor, "N 3"],
    radius: float,
    viewmat: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    away: Float[Tensor, "H W"],
) -> Bool[Tensor, " N"]:
    """Whether balls are outside of a photograph, or no farther from its silhouette than they are large.

    Args:
        points: their centres in the world.
        radius: of the balls.
        viewmat: of the camera.
        K: of the camera.
        away: pixels from each pixel to the nearest that has alpha.
    """
    height, width = away.shape
    x, y, depth = (points @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(dim=1)
    column, row = ((K[i, i] * one / depth + K[i, 2]).floor().long() for i, one in enumerate((x, y)))
    shown = (depth > radius) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    reach = torch.maximum(K[0, 0], K[1, 1]) * radius / (depth - radius).clamp_min(1e-9) + 1
    return ~shown | (away[row.clamp(0, height - 1), column.clamp(0, width - 1)] <= reach)
