"""Gradients of the compositing, in one more front-to-back walk over the tiles.

For a pixel with colour C = sum_j w_j c_j + T b, weights w = alpha T and the loss's gradients v_C and v_alpha, let
g_j = c_j . v_C. Then

    d loss / d alpha_k = T_k g_k - R_k / (1 - alpha_k),    R_k = sum_{j > k} w_j g_j + T (b . v_C - v_alpha)

and R_k is C . v_C - T v_alpha less the terms up to k: a single number a pixel, carried from front to back.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from compress3d.splats.rasterize.blend import (
    LANES,
    PIXELS,
    STOP_CHECK,
    TRANSMITTANCE_MIN,
    any_open,
    falloff,
    light_after,
    open_tile,
    row_bounds,
    row_parabola,
    seen_alpha,
    spread,
)
from compress3d.splats.rasterize.project import ALPHA_MAX, FAST_MATH
from compress3d.splats.rasterize.tiles import PEAK, TILE, A, B, C, TileLists, U, V

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
_ALPHA_MAX, _STOP = np.float32(ALPHA_MAX), np.float32(TRANSMITTANCE_MIN)

V_U, V_V, V_A, V_B, V_C, V_PEAK, ABS_U, ABS_V, V_COLOR = range(9)
"""Columns of the gradients of one tile intersection; the colour's are the last."""


class BlendGradients(NamedTuple):
    """Gradients of N Gaussians, M of them visible.

    Args:
        means2d: (N, 2). conics: (N, 3). peaks: (N,). absolute: (N, 2) sum over pixels of |d loss / d means2d|.
        colors: (M, D) in the order of the tile lists.
    """

    means2d: np.ndarray
    conics: np.ndarray
    peaks: np.ndarray
    absolute: np.ndarray
    colors: np.ndarray


def blend_backward(
    tiles: TileLists,
    colors: np.ndarray,
    image: np.ndarray,
    alphas: np.ndarray,
    v_image: np.ndarray,
    v_alphas: np.ndarray,
    count: int,
    absgrad: bool,
) -> BlendGradients:
    """Gradients of `blend`; 32 + 4 D bytes a tile intersection besides what is returned.

    Args:
        tiles, colors: as `blend` took them. image, alphas: what it returned.
        v_image (H, W, D), v_alphas (H, W): gradients of the loss with respect to them, float32.
        count: N.
        absgrad: whether `absolute` is wanted; zeros otherwise.
    """
    threads = nb.get_num_threads()
    by_tile = _walk(
        tiles.ellipses, tiles.starts, tiles.ranks, colors, image, alphas, v_image, v_alphas, absgrad, threads
    )
    by_rank = _sum_by_rank(tiles.ranks, by_tile, len(tiles.order), threads)
    spread_out = np.zeros((count, V_COLOR), np.float32)
    spread_out[tiles.order] = by_rank[:, :V_COLOR]
    return BlendGradients(
        spread_out[:, [V_U, V_V]], spread_out[:, [V_A, V_B, V_C]], spread_out[:, V_PEAK].copy(),
        spread_out[:, [ABS_U, ABS_V]], by_rank[:, V_COLOR:].copy(),
    )  # fmt: skip


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def _walk(ellipses, starts, ranks, colors, image, alphas, v_image, v_alphas, absgrad, threads):
    """(intersections, 8 + D) gradients; the columns are named above."""
    height, width, channels = image.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    gradients = np.zeros((len(ranks), V_COLOR + channels), np.float32)
    for task in nb.prange(tiles_x * tiles_y):
        tile = spread(np.int64(task), tiles_x * tiles_y, threads)
        left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        columns, rows = min(TILE, width - left), min(TILE, height - top)
        transmittances, remainders = np.empty(PIXELS, np.float32), np.zeros(PIXELS, np.float32)
        incoming = np.zeros(channels * PIXELS, np.float32)
        weights, towards, slopes = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        open_tile(transmittances, rows, columns)
        for row in range(rows):
            for column in range(columns):
                pixel = row * TILE + column
                remainder = -(_ONE - alphas[top + row, left + column]) * v_alphas[top + row, left + column]
                for channel in range(channels):
                    v = v_image[top + row, left + column, channel]
                    incoming[channel * PIXELS + pixel] = v
                    remainder += v * image[top + row, left + column, channel]
                remainders[pixel] = remainder
        x = np.float32(left) + np.float32(0.5)
        for at in range(starts[tile], starts[tile + 1]):
            if (at - starts[tile]) % STOP_CHECK == STOP_CHECK - 1 and not any_open(transmittances):
                break
            rank = ranks[at]
            first, last = row_bounds(ellipses, rank, np.float32(top), rows)
            a, b, c = ellipses[rank, A], ellipses[rank, B], ellipses[rank, C]
            v_u, v_v, v_a, v_b, v_c, v_log_peak = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
            for row in range(first, last):
                y = np.float32(top + row) + np.float32(0.5)
                start = row * TILE
                _dot_row(towards, colors, rank, incoming, start)
                s0, s1, s2 = _row_slopes(
                    ellipses, rank, x, y, transmittances, remainders, start, towards, weights, slopes
                )
                dy = y - ellipses[rank, V]
                v_u += a * s1 + b * dy * s0
                v_v += b * s1 + c * dy * s0
                v_a += s2
                v_b += s1 * dy
                v_c += s0 * dy * dy
                v_log_peak += s0
                for channel in range(channels):
                    gradients[at, V_COLOR + channel] += _dot(weights, incoming, channel * PIXELS + start)
                if absgrad:
                    abs_u, abs_v = _row_absolute(slopes, x - ellipses[rank, U], dy, a, b, c)
                    gradients[at, ABS_U] += abs_u
                    gradients[at, ABS_V] += abs_v
            # The slopes are along -sigma, and a mean moves against the pixel's offset from it.
            gradients[at, V_U], gradients[at, V_V] = v_u, v_v
            gradients[at, V_A], gradients[at, V_B] = np.float32(-0.5) * v_a, -v_b
            gradients[at, V_C] = np.float32(-0.5) * v_c
            gradients[at, V_PEAK] = v_log_peak / ellipses[rank, PEAK]
    return gradients


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _dot_row(towards, colors, rank, incoming, start):
    """towards = colour . gradient of the pixel, for sixteen pixels of a row."""
    for k in range(LANES):
        towards[k] = _ZERO
    for channel in range(colors.shape[1]):
        value, first = colors[rank, channel], np.uintp(channel * PIXELS + start)
        for k in range(LANES):
            towards[k] += value * incoming[first + k]


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _dot(weights, incoming, start):
    total, first = _ZERO, np.uintp(start)
    for k in range(LANES):
        total += weights[k] * incoming[first + k]
    return total


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _row_slopes(ellipses, rank, x, y, transmittances, remainders, row, towards, weights, slopes):
    """As `row_weights`, and d loss / d log alpha of each pixel.

    Args:
        remainders: (256,) of the tile, see the module; updated. towards: (16,) g of the row's pixels.
        weights, slopes: (16,), overwritten.

    Returns:
        sums over the row of slope, slope dx and slope dx^2.
    """
    dx0, a, b, c, peak = row_parabola(ellipses, rank, x, y)
    start = np.uintp(row)
    s0, s1, s2 = _ZERO, _ZERO, _ZERO
    for k in range(LANES):
        dx = dx0 + np.float32(k)
        z = (a * dx + b) * dx + c
        raw = peak * falloff(z)
        alpha = seen_alpha(raw, z)
        before = transmittances[start + k]
        light = max(before, _ZERO)
        through = _ONE - alpha
        after = light * through
        weight = alpha * light if after > _STOP else _ZERO
        weights[k] = weight
        transmittances[start + k] = light_after(before, after)
        remainder = remainders[start + k] - weight * towards[k]
        remainders[start + k] = remainder
        # At the clamp alpha does not move.
        slope = weight * towards[k] - remainder * (alpha / through)
        slope = slope if weight > _ZERO else _ZERO
        slope = slope if raw <= _ALPHA_MAX else _ZERO
        slopes[k] = slope
        s0 += slope
        s1 += slope * dx
        s2 += slope * (dx * dx)
    return s0, s1, s2


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _row_absolute(slopes, dx0, dy, a, b, c):
    """Sums over a row of |d loss / d u| and |d loss / d v| of each pixel."""
    abs_u, abs_v = _ZERO, _ZERO
    for k in range(LANES):
        dx = dx0 + np.float32(k)
        size = abs(slopes[k])
        abs_u += size * abs(a * dx + b * dy)
        abs_v += size * abs(b * dx + c * dy)
    return abs_u, abs_v


@nb.njit(parallel=True, cache=True)
def _sum_by_rank(ranks, by_tile, count, threads):
    """Sum the intersections of each rank in the order of the tiles, whatever the number of threads."""
    columns = by_tile.shape[1]
    sums = np.zeros((count, columns), np.float32)
    for thread in nb.prange(threads):
        low, high = count * np.int64(thread) // threads, count * (np.int64(thread) + 1) // threads
        for at in range(len(ranks)):
            rank = ranks[at]
            if low <= rank < high:
                for column in range(columns):
                    sums[rank, column] += by_tile[at, column]
    return sums
