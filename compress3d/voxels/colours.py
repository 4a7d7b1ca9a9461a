"""Voxels of photographs: the shell of an object's visual hull, each cell with the colour that photographs give it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.captures import Capture
from compress3d.mesh.importance import Silhouettes
from compress3d.mesh.isosurface import Corner, hull_field
from compress3d.mesh.silhouette import NEAR
from compress3d.voxels.grid import SparseVoxels
from secateur.console import Report, silent


def coloured_voxels(
    capture: Capture, low: Corner, high: Corner, resolution: int = 128, report: Report = silent
) -> SparseVoxels:
    """The cells of the visual hull that touch its outside, with their mean colour (RGB in [0, 1]) where they are seen.

    Cells are those around the grid points of `hull_field`, through the photographs to train on. A view sees the cells
    that are nearest to it. Cells that no view sees are left out.

    Args:
        capture: photographs with alpha.
        low: lowest corner of the space in which the object is, in world units.
        high: highest corner.
        resolution: cells along each axis, at least 2.
        report: told how far it is.

    Raises:
        ValueError: the photographs have no alpha, the resolution is below 2, or nothing is inside all silhouettes.
    """
    inside = hull_field(Silhouettes.of(capture), low, high, resolution, report) > 0
    coords = shell(inside)
    if not len(coords):
        raise ValueError("nothing is inside all silhouettes: are the cameras and the box of one world?")
    start = torch.tensor(low)
    step = (torch.tensor(high) - start) / (resolution - 1)
    centres = start + coords * step
    sums, counts = torch.zeros(len(coords), 3), torch.zeros(len(coords), 1)
    for index in capture.train.tolist():
        camera = capture.cameras[index]
        seen, pixels = visible(centres, camera, float(step.max()))
        opaque = torch.ones(len(seen), dtype=torch.bool)
        if capture.alphas is not None:
            opaque = capture.alphas[index].flatten()[pixels] > 127
        sums[seen[opaque]] += capture.images[index].reshape(-1, 3)[pixels[opaque]].float() / 255
        counts[seen[opaque]] += 1
    known = counts[:, 0] > 0
    return SparseVoxels(coords[known], sums[known] / counts[known])


def shell(inside: Tensor) -> Int64[Tensor, "N 3"]:
    """(N, 3) cells of a (X, Y, Z) bool grid that are True and touch one by a face that is not, or the grid's end."""
    padded = torch.nn.functional.pad(inside, (1,) * 6)
    buried = inside.clone()
    for axis in range(3):
        for side in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(side, side + inside.shape[axis])
            buried &= padded[tuple(window)]
    return (inside & ~buried).nonzero()


def visible(
    points: Float[Tensor, "N 3"], camera: Cameras, width: float
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]:
    """Which points a camera sees, and the pixel of each, counted row by row.

    A point is hidden where another one, not two cells beside it in the image, is two cells nearer.

    Args:
        points: centres of cells.
        camera: one view.
        width: of a cell, in world units.
    """
    viewmat, K = camera.viewmats[0], camera.Ks[0]
    placed = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    depths = placed[:, 2]
    pixels = (placed @ K.T)[:, :2] / depths.clamp_min(NEAR)[:, None]
    shown = (depths > NEAR) & ((pixels >= 0) & (pixels < torch.tensor([camera.width, camera.height]))).all(dim=1)
    rows = shown.nonzero()[:, 0]
    if not len(rows):
        return rows, rows
    # Bins of two cells, as wide as they look at their nearest, so that none lies between the cells of a surface.
    bin_pixels = max(1.0, 2 * float(K[0, 0]) * width / float(depths[rows].min()))
    across = int(camera.width / bin_pixels) + 1
    bins = (pixels[rows] / bin_pixels).long()
    bins = bins[:, 1] * across + bins[:, 0]
    nearest = torch.full((int(bins.max()) + 1,), torch.inf).scatter_reduce(0, bins, depths[rows], "amin")
    rows = rows[depths[rows] <= nearest[bins] + 2 * width]
    places = pixels[rows].long()
    return rows, places[:, 1] * camera.width + places[:, 0]
