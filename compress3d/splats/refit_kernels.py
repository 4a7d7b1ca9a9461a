"""Numba kernels of the Gauss-Newton refit: sums over pixel lists, and the turn from ranks to unknowns and back."""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from compress3d.splats.rasterize.harmonics import fill_basis
from compress3d.splats.rasterize.project import FAST_MATH


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def composite(starts, ranks, weights, colors):
    """(P, 3) pixels on white."""
    out = np.empty((len(starts) - 1, 3), np.float32)
    for pixel in nb.prange(len(starts) - 1):
        red, green, blue, light = np.float32(0), np.float32(0), np.float32(0), np.float32(1)
        for entry in range(starts[pixel], starts[pixel + 1]):
            weight, rank = weights[entry], ranks[entry]
            red += weight * colors[rank, 0]
            green += weight * colors[rank, 1]
            blue += weight * colors[rank, 2]
            light -= weight
        out[pixel, 0], out[pixel, 1], out[pixel, 2] = red + light, green + light, blue + light
    return out


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _log(x):
    """ln x within 0.002 for positive x: exponent plus a parabola through the mantissa; a slope needs no more."""
    bits = np.float32(x).view(np.int32)
    exponent = np.float32((bits >> 23) - 127)
    mantissa = np.int32((bits & 0x7FFFFF) | 0x3F800000).view(np.float32) - np.float32(1.0)
    return np.float32(0.6931472) * (exponent + mantissa * (np.float32(1.3465) - np.float32(0.3465) * mantissa))


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _slopes(starts, ranks, weights, colors, log_peaks, pixels, pixel, slopes):
    """Fill `slopes` (entries of the pixel, 4): d pixel / d log alpha by channel, d log alpha / d log size."""
    red, green, blue, light = pixels[pixel, 0], pixels[pixel, 1], pixels[pixel, 2], np.float32(1.0)
    for entry in range(starts[pixel], starts[pixel + 1]):
        weight, rank = weights[entry], ranks[entry]
        alpha = weight / light
        light -= weight
        odds = alpha / max(np.float32(1e-3), np.float32(1.0) - alpha)
        own_red, own_green, own_blue = weight * colors[rank, 0], weight * colors[rank, 1], weight * colors[rank, 2]
        red, green, blue = red - own_red, green - own_green, blue - own_blue
        at = entry - starts[pixel]
        slopes[at, 0], slopes[at, 1], slopes[at, 2] = (
            own_red - red * odds,
            own_green - green * odds,
            own_blue - blue * odds,
        )
        slopes[at, 3] = np.float32(2.0) * max(np.float32(0.0), log_peaks[rank] - _log(alpha))


@nb.njit(cache=True)
def _longest(starts):
    """Entries of the pixel that has most."""
    longest = np.int64(0)
    for pixel in range(len(starts) - 1):
        longest = max(longest, starts[pixel + 1] - starts[pixel])
    return longest


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def pull(starts, ranks, weights, colors, log_peaks, pixels, residuals, threads):
    """(M, 8) by rank: J^T residuals (colour, opacity, size), then the diagonal of J^T J (colour, opacity, size)."""
    count, longest = len(starts) - 1, _longest(starts)
    parts = np.zeros((threads, len(colors), 8), np.float32)
    for part in nb.prange(threads):
        sums, slopes = parts[part], np.empty((longest, 4), np.float32)
        for pixel in range(count * part // threads, count * (part + 1) // threads):
            _slopes(starts, ranks, weights, colors, log_peaks, pixels, pixel, slopes)
            by_red, by_green, by_blue = residuals[pixel, 0], residuals[pixel, 1], residuals[pixel, 2]
            for entry in range(starts[pixel], starts[pixel + 1]):
                weight, rank, at = weights[entry], ranks[entry], entry - starts[pixel]
                d_red, d_green, d_blue, grow = slopes[at, 0], slopes[at, 1], slopes[at, 2], slopes[at, 3]
                slope = d_red * by_red + d_green * by_green + d_blue * by_blue
                square = d_red * d_red + d_green * d_green + d_blue * d_blue
                sums[rank, 0] += weight * by_red
                sums[rank, 1] += weight * by_green
                sums[rank, 2] += weight * by_blue
                sums[rank, 3] += slope
                sums[rank, 4] += grow * slope
                sums[rank, 5] += weight * weight
                sums[rank, 6] += square
                sums[rank, 7] += grow * grow * square
    return _total(parts)


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def pull_pushed(starts, ranks, weights, colors, log_peaks, pixels, moves, threads):
    """J^T J times the moves (M, 5) of each rank's colour, log-opacity and log-size: (M, 5)."""
    count, longest = len(starts) - 1, _longest(starts)
    parts = np.zeros((threads, len(colors), 5), np.float32)
    for part in nb.prange(threads):
        sums, slopes = parts[part], np.empty((longest, 4), np.float32)
        for pixel in range(count * part // threads, count * (part + 1) // threads):
            _slopes(starts, ranks, weights, colors, log_peaks, pixels, pixel, slopes)
            red, green, blue = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for entry in range(starts[pixel], starts[pixel + 1]):
                weight, rank, at = weights[entry], ranks[entry], entry - starts[pixel]
                swell = moves[rank, 3] + slopes[at, 3] * moves[rank, 4]
                red += weight * moves[rank, 0] + slopes[at, 0] * swell
                green += weight * moves[rank, 1] + slopes[at, 1] * swell
                blue += weight * moves[rank, 2] + slopes[at, 2] * swell
            for entry in range(starts[pixel], starts[pixel + 1]):
                weight, rank, at = weights[entry], ranks[entry], entry - starts[pixel]
                slope = slopes[at, 0] * red + slopes[at, 1] * green + slopes[at, 2] * blue
                sums[rank, 0] += weight * red
                sums[rank, 1] += weight * green
                sums[rank, 2] += weight * blue
                sums[rank, 3] += slope
                sums[rank, 4] += slopes[at, 3] * slope
    return _total(parts)


@nb.njit(parallel=True, cache=True)
def _total(parts):
    """Sum over the first axis."""
    total = parts[0]
    for row in nb.prange(total.shape[0]):
        for part in range(1, parts.shape[0]):
            for column in range(total.shape[1]):
                total[row, column] += parts[part, row, column]
    return total


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def moves_of(means, camera, degree, order, colors, coefficients, opacities, sizes):
    """(M, 5) what a step in the unknowns does to the colour, log-opacity and log-size of each rank in one view."""
    out = np.empty((len(order), 5), np.float32)
    terms = (degree + 1) * (degree + 1)
    for rank in nb.prange(len(order)):
        i = order[rank]
        basis = _basis(means, i, camera, degree)
        for channel in range(3):
            total = np.float32(0.0)
            for k in range(terms):
                total += basis[k] * coefficients[i, k, channel]
            # A colour that is clamped at black does not move.
            out[rank, channel] = total if colors[rank, channel] > 0 else np.float32(0.0)
        out[rank, 3], out[rank, 4] = opacities[i], sizes[i]
    return out


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def spread(means, camera, degree, order, sums, coefficients, opacities, sizes, squares, opacity_squares, size_squares):
    """Add one view's sums by rank to the unknowns; the diagonal too where its arrays are not empty."""
    terms = (degree + 1) * (degree + 1)
    diagonal = len(opacity_squares) > 0
    for rank in nb.prange(len(order)):
        i = order[rank]
        basis = _basis(means, i, camera, degree)
        for k in range(terms):
            for channel in range(3):
                coefficients[i, k, channel] += basis[k] * sums[rank, channel]
            if diagonal:
                squares[i, k, 0] += basis[k] * basis[k] * sums[rank, 5]
        opacities[i] += sums[rank, 3]
        sizes[i] += sums[rank, 4]
        if diagonal:
            opacity_squares[i] += sums[rank, 6]
            size_squares[i] += sums[rank, 7]


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _basis(means, i, camera, degree):
    basis = np.empty(16, np.float32)
    x, y, z = means[i, 0] - camera[0], means[i, 1] - camera[1], means[i, 2] - camera[2]
    norm = np.float32(1.0) / math.sqrt(x * x + y * y + z * z + np.float32(1e-24))
    fill_basis(basis, x * norm, y * norm, z * norm, degree)
    return basis
