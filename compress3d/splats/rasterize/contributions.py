"""What each Gaussian contributes to the pixels of some views: one forward walk, no gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize.blend import (
    LANES,
    PIXELS,
    STOP_CHECK,
    any_open,
    open_tile,
    row_bounds,
    row_weights,
    spread,
)
from compress3d.splats.rasterize.cpu import Lens, as_array, blend_view, project_view, view_colors
from compress3d.splats.rasterize.project import FAST_MATH
from compress3d.splats.rasterize.rasterization import scene_gaussians, scene_views
from compress3d.splats.rasterize.tiles import TILE
from compress3d.splats.scene import SplatScene


@dataclass(frozen=True, slots=True, eq=False)
class RayContributions:
    """Per-Gaussian statistics of blending weights w = alpha T over every pixel (ray) of every view.

    Args:
        sum: (N,) sum of w.
        max: (N,) largest w.
        count: (N,) rays that the Gaussian colours at all.
        top1: (N,) rays to which no other Gaussian contributes more.
        pixel_normalised: (N,) sum over views of (sum of w) / (rays coloured in that view).
        transmittance: (N,) sum of T, the light that reaches the Gaussian, over the rays that it colours.
    """

    sum: Float[Tensor, " N"]
    max: Float[Tensor, " N"]
    count: Int[Tensor, " N"]
    top1: Int[Tensor, " N"]
    pixel_normalised: Float[Tensor, " N"]
    transmittance: Float[Tensor, " N"]


class Observation(NamedTuple):
    """Renders of a scene on white (C, H, W, 3), and the sum of each Gaussian's weights over all their pixels (N,)."""

    images: Float[Tensor, "C H W 3"]
    weights: Float[Tensor, " N"]


def observe(scene: SplatScene, cameras: Cameras, progress: Callable[[int], None] | None = None) -> Observation:
    """Render the views on white, and sum what each Gaussian contributes, in the same walk.

    Time is that of rendering the views; memory is 4 bytes a tile intersection for one view at a time, and the images.

    Args:
        scene: on the CPU.
        cameras: the views; their image size decides how many rays there are.
        progress: called with the number of views done.
    """
    totals, white = np.zeros(len(scene), np.float64), np.ones(3, np.float32)
    images = torch.empty(len(cameras), cameras.height, cameras.width, 3)
    gaussians, lens = scene_gaussians(scene), Lens(antialiased=scene.antialiased)
    sh0, shN = as_array(scene.sh0), as_array(scene.shN)
    for index, view in enumerate(scene_views(cameras)):
        _, tiles = project_view(gaussians, view, lens)
        colors = view_colors(gaussians, sh0, shN, scene.sh_degree, view, tiles.order)
        sums = np.zeros(len(tiles.ranks), np.float32)
        images[index] = torch.from_numpy(blend_view(tiles, colors, white, view, sums)[0])
        totals[tiles.order] += np.bincount(tiles.ranks, sums, minlength=len(tiles.order))
        if progress is not None:
            progress(index + 1)
    return Observation(images, torch.from_numpy(totals.astype(np.float32)))


def ray_contributions(
    scene: SplatScene, cameras: Cameras, progress: Callable[[int], None] | None = None
) -> RayContributions:
    """Gather the statistics of every Gaussian in one walk over each view.

    Time is about twice that of rendering the views; memory is 20 bytes a tile intersection for one view at a time.
    Arguments as `observe`.
    """
    count = len(scene)
    totals = np.zeros((4, count), np.float64)
    rays = np.zeros((2, count), np.int64)
    gaussians, lens = scene_gaussians(scene), Lens(antialiased=scene.antialiased)
    for index, view in enumerate(scene_views(cameras)):
        _, tiles = project_view(gaussians, view, lens)
        lists = (tiles.ellipses, tiles.starts, tiles.ranks)
        walked = _walk(*lists, view.width, view.height, nb.get_num_threads())
        _add_view(tiles.order, tiles.ranks, walked, totals, rays)
        if progress is not None:
            progress(index + 1)
    sums, maxima, normalised, light = (torch.from_numpy(total.astype(np.float32)) for total in totals)
    return RayContributions(sums, maxima, torch.from_numpy(rays[0]), torch.from_numpy(rays[1]), normalised, light)


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def _walk(ellipses, starts, ranks, width, height, threads):
    """Per tile intersection: sum of w, max of w, sum of T (float32), rays coloured, rays led (int32)."""
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    sums, maxima, light = np.zeros((3, len(ranks)), np.float32)
    counts, leads = np.zeros((2, len(ranks)), np.int32)
    for task in nb.prange(tiles_x * tiles_y):
        tile = spread(np.int64(task), tiles_x * tiles_y, threads)
        left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        columns, rows = min(TILE, width - left), min(TILE, height - top)
        transmittances = np.empty(PIXELS, np.float32)
        weights = np.empty(TILE, np.float32)
        best = np.zeros(PIXELS, np.float32)
        leaders = np.full(PIXELS, -1, np.int32)
        open_tile(transmittances, rows, columns)
        x = np.float32(left) + np.float32(0.5)
        for at in range(starts[tile], starts[tile + 1]):
            if (at - starts[tile]) % STOP_CHECK == STOP_CHECK - 1 and not any_open(transmittances):
                break
            rank = ranks[at]
            first, last = row_bounds(ellipses, rank, np.float32(top), rows)
            for row in range(first, last):
                y = np.float32(top + row) + np.float32(0.5)
                row_weights(ellipses, rank, x, y, transmittances, row * TILE, weights)
                total, most, lit, hits = _row_statistics(
                    weights, transmittances, best, leaders, row * TILE, np.int32(at - starts[tile])
                )
                sums[at] += total
                maxima[at] = max(maxima[at], most)
                light[at] += lit
                counts[at] += hits
        for pixel in range(PIXELS):
            if leaders[pixel] >= 0:
                leads[starts[tile] + leaders[pixel]] += 1
    return sums, maxima, light, counts, leads


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _row_statistics(weights, transmittances, best, leaders, start, leader):
    total, most, lit, hits = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.int32(0)
    first = np.uintp(start)
    for k in range(LANES):
        weight = weights[k]
        hit = weight > np.float32(0.0)
        total += weight
        most = max(most, weight)
        hits += np.int32(1) if hit else np.int32(0)
        # The light before the Gaussian is what it took plus what it let through.
        lit += weight + transmittances[first + k] if hit else np.float32(0.0)
        leads = weight > best[first + k]
        best[first + k] = weight if leads else best[first + k]
        leaders[first + k] = leader if leads else leaders[first + k]
    return total, most, lit, hits


@nb.njit(cache=True)
def _add_view(order, ranks, walked, totals, rays):
    """Add one view's intersections to the totals (4, N): sum, max, pixel-normalised, light; and rays (2, N)."""
    sums, maxima, light, counts, leads = walked
    view_sums, view_counts = np.zeros(len(order), np.float64), np.zeros(len(order), np.int64)
    for at in range(len(ranks)):
        rank = ranks[at]
        i = order[rank]
        view_sums[rank] += sums[at]
        view_counts[rank] += counts[at]
        totals[1, i] = max(totals[1, i], maxima[at])
        totals[3, i] += light[at]
        rays[1, i] += leads[at]
    for rank in range(len(order)):
        i = order[rank]
        totals[0, i] += view_sums[rank]
        rays[0, i] += view_counts[rank]
        if view_counts[rank] > 0:
            totals[2, i] += view_sums[rank] / view_counts[rank]
