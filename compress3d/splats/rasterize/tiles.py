"""Depth order, and which 16x16 tiles each ellipse really touches (Hanson et al. 2025, Speedy-Splat: exact culling)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba as nb
import numpy as np

from compress3d.splats.rasterize.project import ALPHA_MIN, FAST_MATH

TILE = 16

U, V, A, B, C, PEAK, LEVEL, HALF_Y = range(8)
"""Columns of a packed ellipse: centre, conic, opacity, level 2 ln(peak / alpha_min), half-height in pixels."""


class TileLists(NamedTuple):
    """Which ellipses each tile composites, front to back.

    Args:
        ellipses: (M, 8) float32 packed ellipses of the visible Gaussians, nearest first.
        order: (M,) int32 Gaussian index of each ellipse.
        starts: (tiles + 1,) int64 offsets into `ranks`.
        ranks: (intersections,) int32 row in `ellipses`, tile by tile, nearest first.
    """

    ellipses: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    ranks: np.ndarray


@nb.njit(cache=True)
def _is_before(i, j, means2d, conics, peaks):  # pragma: no cover - compiled
    return (means2d[i, 0], means2d[i, 1], peaks[i], conics[i, 0], conics[i, 1], conics[i, 2]) < (
        means2d[j, 0], means2d[j, 1], peaks[j], conics[j, 0], conics[j, 1], conics[j, 2],
    )  # fmt: skip


@nb.njit(cache=True)
def _sort_ties(order, means2d, conics, peaks):  # pragma: no cover - compiled
    """Heapsort Gaussians of equal depth, in place: all of a wall that faces the camera may be one tie."""
    count = len(order)
    for start in range(count // 2 - 1, -count, -1):
        root, end = max(start, 0), count + min(start, 0)
        if start < 0:
            order[0], order[end] = order[end], order[0]
        while 2 * root + 1 < end:
            child = 2 * root + 1
            if child + 1 < end and _is_before(order[child], order[child + 1], means2d, conics, peaks):
                child += 1
            if not _is_before(order[root], order[child], means2d, conics, peaks):
                break
            order[root], order[child] = order[child], order[root]
            root = child


@nb.njit(cache=True)
def depth_order(depths, radii, means2d, conics, peaks):  # pragma: no cover - compiled
    """Indices of the visible Gaussians (radius above 0), nearest first; (M,) int32.

    A radix sort on the bits of the positive depth. Equal depths are ordered by screen position, opacity and shape, so
    that permuting the input does not change the picture (unless two ellipses are one and the same, bit for bit).
    """
    n = depths.shape[0]
    visible = 0
    for i in range(n):
        visible += radii[i, 0] > 0
    keys, order = np.empty(visible, np.uint32), np.empty(visible, np.int32)
    bits = depths.view(np.uint32)
    visible = 0
    for i in range(n):
        if radii[i, 0] > 0:
            keys[visible], order[visible] = bits[i], i
            visible += 1
    other_keys, other_order = np.empty_like(keys), np.empty_like(order)
    for shift in (0, 11, 22):
        counts = np.zeros(2049, np.int64)
        for k in range(visible):
            counts[((keys[k] >> shift) & 2047) + 1] += 1
        for digit in range(2048):
            counts[digit + 1] += counts[digit]
        for k in range(visible):
            digit = (keys[k] >> shift) & 2047
            other_keys[counts[digit]], other_order[counts[digit]] = keys[k], order[k]
            counts[digit] += 1
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
    first = 0
    for k in range(1, visible + 1):
        if k == visible or keys[k] != keys[first]:
            _sort_ties(order[first:k], means2d, conics, peaks)
            first = k
    return order


@nb.njit(parallel=True, cache=True, error_model="numpy")
def pack(order, means2d, conics, peaks):  # pragma: no cover - compiled
    """Gather what compositing needs of each visible Gaussian next to each other; (M, 8) float32."""
    ellipses = np.empty((order.shape[0], 8), np.float32)
    for rank in nb.prange(order.shape[0]):
        i = order[rank]
        a, b, c = conics[i, 0], conics[i, 1], conics[i, 2]
        # A hair above the exact level, so that rounding never culls what the per-pixel alpha test would keep.
        level = np.float32(2.0) * math.log(peaks[i] / np.float32(ALPHA_MIN)) * np.float32(1.0001) + np.float32(1e-4)
        ellipses[rank, U], ellipses[rank, V] = means2d[i, 0], means2d[i, 1]
        ellipses[rank, A], ellipses[rank, B], ellipses[rank, C] = a, b, c
        ellipses[rank, PEAK], ellipses[rank, LEVEL] = peaks[i], level
        ellipses[rank, HALF_Y] = math.sqrt(level * a / max(np.float32(1e-30), a * c - b * b))
    return ellipses


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def tile_row_range(ellipses, rank, tiles_y):  # pragma: no cover - compiled
    """First and last tile row that the ellipse touches; the last is below the first when it touches none."""
    v, half = ellipses[rank, V], ellipses[rank, HALF_Y]
    limit = np.float32(tiles_y * TILE)
    first = math.ceil(max(np.float32(0.0), v - half - np.float32(0.5)))
    last = math.floor(min(limit, v + half + np.float32(0.5))) - 1
    return int(first) // TILE, int(last) // TILE


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def tile_column_range(ellipses, rank, tile_y, tiles_x):  # pragma: no cover - compiled
    """First and last tile column that the ellipse touches within one row of tiles, from the quadratic's extrema."""
    a, b, c, level = ellipses[rank, A], ellipses[rank, B], ellipses[rank, C], ellipses[rank, LEVEL]
    determinant = max(np.float32(1e-30), a * c - b * b)
    low = np.float32(tile_y * TILE) + np.float32(0.5) - ellipses[rank, V]
    high = low + np.float32(TILE - 1)
    half_y, half_x = ellipses[rank, HALF_Y], math.sqrt(level * c / determinant)
    low, high = max(low, -half_y), min(high, half_y)
    # The ellipse is widest to the right at dy = -b / c * half_x, to the left at the opposite point.
    at_right = min(max(-b / c * half_x, low), high)
    at_left = min(max(b / c * half_x, low), high)
    right = (-b * at_right + math.sqrt(max(np.float32(0.0), a * level - determinant * at_right * at_right))) / a
    left = (-b * at_left - math.sqrt(max(np.float32(0.0), a * level - determinant * at_left * at_left))) / a
    limit = np.float32(tiles_x * TILE)
    u, slack = ellipses[rank, U], np.float32(0.502)
    first = math.ceil(max(np.float32(0.0), min(limit, u + left - slack)))
    last = math.floor(min(limit, max(np.float32(-1.0), u + right + slack))) - 1
    return int(first) // TILE, int(last) // TILE


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _count_and_fill(ellipses, tiles_x, tiles_y, chunks):  # pragma: no cover - compiled
    count = ellipses.shape[0]
    tiles = tiles_x * tiles_y
    cursors = np.zeros((chunks, tiles), np.int64)
    for chunk in nb.prange(chunks):
        for rank in range(count * chunk // chunks, count * (chunk + 1) // chunks):
            first_y, last_y = tile_row_range(ellipses, rank, tiles_y)
            for tile_y in range(first_y, last_y + 1):
                first_x, last_x = tile_column_range(ellipses, rank, tile_y, tiles_x)
                for tile_x in range(first_x, last_x + 1):
                    cursors[chunk, tile_y * tiles_x + tile_x] += 1
    starts = np.empty(tiles + 1, np.int64)
    total = 0
    for tile in range(tiles):
        starts[tile] = total
        for chunk in range(chunks):
            here = cursors[chunk, tile]
            cursors[chunk, tile] = total
            total += here
    starts[tiles] = total
    ranks = np.empty(total, np.int32)
    for chunk in nb.prange(chunks):
        for rank in range(count * chunk // chunks, count * (chunk + 1) // chunks):
            first_y, last_y = tile_row_range(ellipses, rank, tiles_y)
            for tile_y in range(first_y, last_y + 1):
                first_x, last_x = tile_column_range(ellipses, rank, tile_y, tiles_x)
                for tile_x in range(first_x, last_x + 1):
                    tile = tile_y * tiles_x + tile_x
                    ranks[cursors[chunk, tile]] = rank
                    cursors[chunk, tile] += 1
    return starts, ranks


def list_tiles(
    means2d: np.ndarray,
    conics: np.ndarray,
    depths: np.ndarray,
    peaks: np.ndarray,
    radii: np.ndarray,
    width: int,
    height: int,
) -> TileLists:
    """Sort the projected Gaussians of one camera by depth, list them by tile; arguments as `project` returns them."""
    order = depth_order(depths, radii, means2d, conics, peaks)
    ellipses = pack(order, means2d, conics, peaks)
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    starts, ranks = _count_and_fill(ellipses, tiles_x, tiles_y, nb.get_num_threads())
    return TileLists(ellipses, order, starts, ranks)
