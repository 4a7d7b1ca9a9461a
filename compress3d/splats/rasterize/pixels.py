"""Pixel lists: which Gaussians colour each pixel of some rows and with what weight, front to back."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

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
from compress3d.splats.rasterize.project import FAST_MATH
from compress3d.splats.rasterize.tiles import TILE, TileLists


class PixelLists(NamedTuple):
    """Blending weights as sparse rows, one a pixel.

    Args:
        starts: (tiles * 256 + 1,) int64 offsets; pixels are listed tile by tile, row by row.
        ranks: (entries,) int32 row in `TileLists.ellipses`, nearest first within a pixel.
        weights: (entries,) float32 alpha T.
    """

    starts: np.ndarray
    ranks: np.ndarray
    weights: np.ndarray


class Lattice(NamedTuple):
    """Every `stride`-th row of an image, from row `offset` on: a walk skips the others as a whole."""

    stride: int
    offset: int


def list_pixels(tiles: TileLists, width: int, height: int, lattice: Lattice, weight_min: float) -> PixelLists:
    """List the pixels of one view; two walks over its tiles, 8 bytes an entry.

    Args:
        tiles: the tile lists of the view.
        width, height: image size in pixels.
        lattice: the pixels to list; the others' rows are empty.
        weight_min: weights below it are left out.
    """
    lists = (*tiles, width, height, lattice.stride, lattice.offset, nb.get_num_threads(), np.float32(weight_min))
    counts = _walk(*lists, np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    entries = PixelLists(starts, np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32))
    _walk(*lists, *entries)
    return entries


def lattice_mask(width: int, height: int, lattice: Lattice) -> np.ndarray:
    """(height, width, 1) float32, 1 on the lattice."""
    mask = np.zeros((height, width, 1), np.float32)
    mask[lattice.offset :: lattice.stride] = 1.0
    return mask


def tile_pixels(image: np.ndarray) -> np.ndarray:
    """The pixels of an image (H, W, D) in the order of `PixelLists`; (tiles * 256, D), zeros outside the image."""
    height, width, channels = image.shape
    tiles_y, tiles_x = -(-height // TILE), -(-width // TILE)
    padded = np.zeros((tiles_y * TILE, tiles_x * TILE, channels), image.dtype)
    padded[:height, :width] = image
    blocks = padded.reshape(tiles_y, TILE, tiles_x, TILE, channels).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(-1, channels)


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def _walk(
    ellipses, order, starts, ranks, width, height, stride, offset, threads, floor, offsets, out_ranks, out_weights
):
    """Count the entries of each pixel; where `offsets` are given, write the entries instead."""
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    filling = len(offsets) > 0
    counts = np.zeros(0 if filling else tiles_x * tiles_y * PIXELS, np.int32)
    for task in nb.prange(tiles_x * tiles_y):
        tile = spread(np.int64(task), tiles_x * tiles_y, threads)
        left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        columns, rows = min(TILE, width - left), min(TILE, height - top)
        transmittances = np.empty(PIXELS, np.float32)
        weights = np.empty(TILE, np.float32)
        cursors = np.zeros(PIXELS, np.int64)
        if filling:
            for pixel in range(PIXELS):
                cursors[pixel] = offsets[tile * PIXELS + pixel]
        open_tile(transmittances, rows, columns)
        x = np.float32(left) + np.float32(0.5)
        for at in range(starts[tile], starts[tile + 1]):
            if (at - starts[tile]) % STOP_CHECK == STOP_CHECK - 1 and not any_open(transmittances):
                break
            rank = ranks[at]
            first, last = row_bounds(ellipses, rank, np.float32(top), rows)
            first += (offset - top - first) % stride
            for row in range(first, last, stride):
                y = np.float32(top + row) + np.float32(0.5)
                row_weights(ellipses, rank, x, y, transmittances, row * TILE, weights)
                if filling:
                    for k in range(TILE):
                        if weights[k] >= floor:
                            cursor = cursors[row * TILE + k]
                            out_ranks[cursor], out_weights[cursor] = rank, weights[k]
                            cursors[row * TILE + k] = cursor + 1
                else:
                    _count_row(cursors, row * TILE, weights, floor)
        if not filling:
            for pixel in range(PIXELS):
                counts[tile * PIXELS + pixel] = cursors[pixel]
    return counts


@nb.njit(cache=True)
def _count_row(cursors, start, weights, floor):
    first = np.uintp(start)
    for k in range(LANES):
        cursors[first + k] += np.int64(1) if weights[k] >= floor else np.int64(0)
