"""Front-to-back alpha compositing of tile lists, sixteen pixels of a row at a time."""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from compress3d.splats.rasterize.project import ALPHA_MAX, ALPHA_MIN, FAST_MATH
from compress3d.splats.rasterize.tiles import HALF_Y, PEAK, TILE, A, B, C, U, V

TRANSMITTANCE_MIN = 1e-4
"""A pixel stops before the Gaussian that would bring its transmittance to this or below."""

PIXELS = TILE * TILE
LANES = np.uintp(TILE)
"""Loops that must become vector instructions count in unsigned integers: signed ones make numba test for wraparound."""

STOP_CHECK = 16
"""After so many Gaussians a tile looks whether any of its pixels is still open."""

# 2^z on [-1.05, 0] as 1 + z (c1 + z (c2 + ...)); raised to the 8th power it gives exp(-s) within 3e-6, relative.
_C1, _C2, _C3, _C4, _C5 = (
    np.float32(0.6931427867086752),
    np.float32(0.24017057937719657),
    np.float32(0.055266949669246224),
    np.float32(0.009167794027601664),
    np.float32(0.0009285850277784141),
)
_LOG2E_8 = np.float32(math.log2(math.e) / 8.0)
_Z_MIN = np.float32(-1.04)
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
_ALPHA_MIN, _ALPHA_MAX, _STOP = np.float32(ALPHA_MIN), np.float32(ALPHA_MAX), np.float32(TRANSMITTANCE_MIN)


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def row_bounds(ellipses, rank, top, rows):  # pragma: no cover - compiled
    """Rows of the tile (from `top`, `rows` high) that the ellipse can touch: first, one past the last."""
    v, half = ellipses[rank, V], ellipses[rank, HALF_Y]
    first = max(_ZERO, math.ceil(v - half - np.float32(0.502) - top))
    last = min(np.float32(rows), math.floor(v + half + np.float32(0.502) - top))
    return int(first), int(last)


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def row_parabola(ellipses, rank, x, y):  # pragma: no cover - compiled
    """Offset of a row's first pixel, and a, b, c, opacity so that (a dx + b) dx + c is the z of `falloff` at dx."""
    dx0, dy = x - ellipses[rank, U], y - ellipses[rank, V]
    a = np.float32(-0.5) * _LOG2E_8 * ellipses[rank, A]
    b = -_LOG2E_8 * ellipses[rank, B] * dy
    c = np.float32(-0.5) * _LOG2E_8 * ellipses[rank, C] * dy * dy
    return dx0, a, b, c, ellipses[rank, PEAK]


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def falloff(z):  # pragma: no cover - compiled
    """2^(8 z) for z in [-1.04, 0]; what is below counts as -1.04, far under what is seen."""
    near = max(z, _Z_MIN)
    power = _ONE + near * (_C1 + near * (_C2 + near * (_C3 + near * (_C4 + near * _C5))))
    power *= power
    power *= power
    return power * power


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def seen_alpha(raw, z):  # pragma: no cover - compiled
    """Alpha after the clamp, and 0 where it is too faint or rounding has turned the falloff around."""
    alpha = min(raw, _ALPHA_MAX)
    alpha = alpha if alpha >= _ALPHA_MIN else _ZERO
    return alpha if z <= _ZERO else _ZERO


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def light_after(before, after):  # pragma: no cover - compiled
    """Transmittance of a pixel after a Gaussian that leaves `after`: negative from where it stops."""
    open_after = after if after > _STOP else -before
    return before if before < _ZERO else open_after


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def row_weights(ellipses, rank, x, y, transmittances, row, weights):  # pragma: no cover - compiled
    """Blend one Gaussian into sixteen pixels of a row: their weights alpha T, and their transmittances after it.

    Args:
        x, y: centre of the row's first pixel. transmittances: (256,) of the tile, negative where a pixel has stopped.
        row: offset of the row in `transmittances`. weights: (16,), overwritten.
    """
    dx0, a, b, c, peak = row_parabola(ellipses, rank, x, y)
    start = np.uintp(row)
    for k in range(LANES):
        dx = dx0 + np.float32(k)
        z = (a * dx + b) * dx + c
        alpha = seen_alpha(peak * falloff(z), z)
        before = transmittances[start + k]
        light = max(before, _ZERO)
        after = light * (_ONE - alpha)
        weights[k] = alpha * light if after > _STOP else _ZERO
        transmittances[start + k] = light_after(before, after)


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def add_row(sums, start, weights, value):  # pragma: no cover - compiled
    """sums[start : start + 16] += value * weights."""
    first = np.uintp(start)
    for k in range(LANES):
        sums[first + k] += weights[k] * value


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def row_sum(weights):  # pragma: no cover - compiled
    """Sum of sixteen weights."""
    total = _ZERO
    for k in range(LANES):
        total += weights[k]
    return total


@nb.njit(cache=True)
def any_open(transmittances):  # pragma: no cover - compiled
    """Whether any pixel of the tile still takes light."""
    most = transmittances[0]
    for pixel in range(np.uintp(PIXELS)):
        most = max(most, transmittances[pixel])
    return most > _ZERO


@nb.njit(cache=True)
def spread(task, tasks, threads):  # pragma: no cover - compiled
    """Renumber tiles so that each thread's contiguous share of the loop is spread evenly over the image."""
    whole = tasks // threads
    if task >= whole * threads:
        return task
    return (task % whole) * threads + task // whole


@nb.njit(cache=True)
def open_tile(transmittances, rows, columns):  # pragma: no cover - compiled
    """Start a tile: pixels inside the image take light, those outside have stopped."""
    for pixel in range(PIXELS):
        inside = (pixel // TILE < rows) & (pixel % TILE < columns)
        transmittances[pixel] = _ONE if inside else -_ONE


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def blend(
    ellipses, starts, ranks, colors, background, width, height, threads, sums_of_weights
):  # pragma: no cover - compiled
    """Composite one image.

    Args:
        ellipses, starts, ranks: a `TileLists`. colors: (M, D) float32 in the order of `ellipses`.
        background: (D,) float32. width, height: image size. threads: number of numba threads.
        sums_of_weights: (intersections,) float32 that takes the sum of each one's weights, or empty.

    Returns:
        image (H, W, D) float32 and alpha (H, W) float32.
    """
    channels, gathers = colors.shape[1], len(sums_of_weights) > 0
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    image = np.empty((height, width, channels), np.float32)
    alphas = np.empty((height, width), np.float32)
    for task in nb.prange(tiles_x * tiles_y):
        tile = spread(np.int64(task), tiles_x * tiles_y, threads)
        left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        columns, rows = min(TILE, width - left), min(TILE, height - top)
        transmittances = np.empty(PIXELS, np.float32)
        weights = np.empty(TILE, np.float32)
        sums = np.zeros(channels * PIXELS, np.float32)
        open_tile(transmittances, rows, columns)
        x = np.float32(left) + np.float32(0.5)
        for at in range(starts[tile], starts[tile + 1]):
            if (at - starts[tile]) % STOP_CHECK == STOP_CHECK - 1 and not any_open(transmittances):
                break
            rank = ranks[at]
            first, last = row_bounds(ellipses, rank, np.float32(top), rows)
            total = _ZERO
            for row in range(first, last):
                y = np.float32(top + row) + np.float32(0.5)
                row_weights(ellipses, rank, x, y, transmittances, row * TILE, weights)
                for channel in range(channels):
                    add_row(sums, channel * PIXELS + row * TILE, weights, colors[rank, channel])
                if gathers:
                    total += row_sum(weights)
            if gathers:
                sums_of_weights[at] = total
        for row in range(rows):
            for column in range(columns):
                left_over = abs(transmittances[row * TILE + column])
                alphas[top + row, left + column] = _ONE - left_over
                for channel in range(channels):
                    image[top + row, left + column, channel] = (
                        sums[channel * PIXELS + row * TILE + column] + left_over * background[channel]
                    )
    return image, alphas
