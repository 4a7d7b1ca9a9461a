"""Numba kernels of a field's two networks: `LANES` samples at a time go through all layers, forth and back, in cache.

Activations lie unit by unit, `LANES` samples each, so that every loop over samples becomes vector instructions whatever
the layers' widths are. Both networks' weights are one flat array. `widths` are those of the density network's
layers, its inputs first, then those of the colour network's.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from compress3d.nerf.hashgrid_kernels import FAST_MATH

LANES = 128
CHUNKS = 8
"""Parts of the samples that sum up gradients on their own: a number that does not depend on the threads."""

_LANES = np.uintp(LANES)


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _layer(weights, at, inputs, outputs, across, down, values, x, row, y, rectified):  # pragma: no cover - compiled
    """Weighted sums of the rows at `x`, into those at `y`; weight (j, k) is at `at + j down + k across`."""
    zero = values.dtype.type(0)
    for j in range(outputs):
        for b in range(_LANES):
            row[b] = zero
        k = 0
        while k + 8 <= inputs:
            w = at + j * down + k * across
            a0, a1, a2, a3 = weights[w], weights[w + across], weights[w + 2 * across], weights[w + 3 * across]
            w += 4 * across
            a4, a5, a6, a7 = weights[w], weights[w + across], weights[w + 2 * across], weights[w + 3 * across]
            v = np.uintp((x + k) * LANES)
            for b in range(_LANES):
                c = v + b
                row[b] += (
                    a0 * values[c] + a1 * values[c + _LANES]
                    + a2 * values[c + np.uintp(2) * _LANES] + a3 * values[c + np.uintp(3) * _LANES]
                    + a4 * values[c + np.uintp(4) * _LANES] + a5 * values[c + np.uintp(5) * _LANES]
                    + a6 * values[c + np.uintp(6) * _LANES] + a7 * values[c + np.uintp(7) * _LANES]
                )  # fmt: skip
            k += 8
        while k < inputs:
            a0, v = weights[at + j * down + k * across], np.uintp((x + k) * LANES)
            for b in range(_LANES):
                row[b] += a0 * values[v + b]
            k += 1
        v = np.uintp((y + j) * LANES)
        for b in range(_LANES):
            values[v + b] = max(row[b], zero) if rectified else row[b]


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _add_products(gradient, at, inputs, outputs, values, x, slopes, y):  # pragma: no cover - compiled
    """Add to the gradient of weight (j, k) the product of slope j and value k, summed over the samples."""
    zero = values.dtype.type(0)
    for j in range(outputs):
        s = np.uintp((y + j) * LANES)
        k = 0
        while k + 4 <= inputs:
            v = np.uintp((x + k) * LANES)
            g0 = g1 = g2 = g3 = zero
            for b in range(_LANES):
                d, c = slopes[s + b], v + b
                g0 += d * values[c]
                g1 += d * values[c + _LANES]
                g2 += d * values[c + np.uintp(2) * _LANES]
                g3 += d * values[c + np.uintp(3) * _LANES]
            w = at + j * inputs + k
            gradient[w] += g0
            gradient[w + 1] += g1
            gradient[w + 2] += g2
            gradient[w + 3] += g3
            k += 4
        while k < inputs:
            v, g0 = np.uintp((x + k) * LANES), zero
            for b in range(_LANES):
                g0 += slopes[s + b] * values[v + b]
            gradient[at + j * inputs + k] += g0
            k += 1


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _load(features, harmonics, rays, first, count, outer, values):  # pragma: no cover - compiled
    """Features into the first rows, harmonics behind what the density network gives; zeros for lanes without sample."""
    zero = values.dtype.type(0)
    for k in range(features.shape[1]):
        for b in range(LANES):
            values[k * LANES + b] = features[first + b, k] if b < count else zero
    for k in range(harmonics.shape[1]):
        for b in range(LANES):
            values[(outer + k) * LANES + b] = harmonics[rays[first + b], k] if b < count else zero


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _forth(weights, density, color, values, row):  # pragma: no cover - compiled
    """All layers over loaded lanes. The colour network's inputs begin where the density network's outputs do."""
    at = x = 0
    for layer in range(len(density) - 1):
        inputs, outputs = density[layer], density[layer + 1]
        _layer(weights, at, inputs, outputs, 1, inputs, values, x, row, x + inputs, layer + 2 < len(density))
        at += inputs * outputs
        x += inputs
    for layer in range(len(color) - 1):
        inputs, outputs = color[layer], color[layer + 1]
        _layer(weights, at, inputs, outputs, 1, inputs, values, x, row, x + inputs, layer + 2 < len(color))
        at += inputs * outputs
        x += inputs


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def run_networks(features, harmonics, rays, weights, density, color, logarithms, colors):  # pragma: no cover - compiled
    """Fill (N,) `logarithms` of densities and (N, 3) `colors`; with no `color` widths only the former."""
    blocks = (len(features) + LANES - 1) // LANES
    middle = density.sum()
    size = (middle + harmonics.shape[1] + color.sum()) * LANES
    each = (blocks + CHUNKS - 1) // CHUNKS
    for chunk in nb.prange(CHUNKS):
        values, row = np.empty(size, features.dtype), np.empty(LANES, features.dtype)
        for block in range(chunk * each, min(blocks, (chunk + 1) * each)):
            first = block * LANES
            count = min(LANES, len(features) - first)
            _load(features, harmonics, rays, first, count, middle, values)
            _forth(weights, density, color, values, row)
            given = (middle - density[-1]) * LANES
            for b in range(count):
                logarithms[first + b] = values[given + b]
            if len(color):
                end = (middle - density[-1] + color.sum() - color[-1]) * LANES
                for c in range(color[-1]):
                    for b in range(count):
                        colors[first + b, c] = values[end + c * LANES + b]


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _back(weights, at, widths, values, x, slopes, row, gradient):  # pragma: no cover - compiled
    """One network backwards, from the slopes of its outputs to those of its inputs and the gradients of its weights.

    `at` and `x` are where its weights and its inputs begin.
    """
    zero = values.dtype.type(0)
    for layer in range(len(widths) - 2, -1, -1):
        inputs, outputs = widths[layer], widths[layer + 1]
        start, rows = at, x
        for before in range(layer):
            start += widths[before] * widths[before + 1]
            rows += widths[before]
        _add_products(gradient, start, inputs, outputs, values, rows, slopes, rows + inputs)
        _layer(weights, start, outputs, inputs, inputs, 1, slopes, rows + inputs, row, rows, False)
        if layer:
            for c in range(np.uintp(rows * LANES), np.uintp((rows + inputs) * LANES)):
                slopes[c] = slopes[c] if values[c] > zero else zero


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def run_networks_backward(
    features, harmonics, rays, weights, density, color, to_logarithms, to_colors, to_features, gradients
):  # pragma: no cover - compiled
    """Fill (N, L F) `to_features`, and add to the (CHUNKS, weights) `gradients`, from the slopes of what came out."""
    blocks = (len(features) + LANES - 1) // LANES
    middle = density.sum()
    outer = middle - density[-1]
    size = (outer + color.sum()) * LANES
    inner_weights = 0
    for layer in range(len(density) - 1):
        inner_weights += density[layer] * density[layer + 1]
    each = (blocks + CHUNKS - 1) // CHUNKS
    for chunk in nb.prange(CHUNKS):
        values, slopes = np.empty(size, features.dtype), np.empty(size, features.dtype)
        row, zero = np.empty(LANES, features.dtype), values.dtype.type(0)
        for block in range(chunk * each, min(blocks, (chunk + 1) * each)):
            first = block * LANES
            count = min(LANES, len(features) - first)
            _load(features, harmonics, rays, first, count, middle, values)
            _forth(weights, density, color, values, row)
            end = (outer + color.sum() - color[-1]) * LANES
            for c in range(color[-1]):
                for b in range(LANES):
                    slopes[end + c * LANES + b] = to_colors[first + b, c] if b < count else zero
            _back(weights, inner_weights, color, values, outer, slopes, row, gradients[chunk])
            for b in range(count):
                slopes[outer * LANES + b] += to_logarithms[first + b]
            _back(weights, 0, density, values, 0, slopes, row, gradients[chunk])
            for b in range(count):
                for k in range(features.shape[1]):
                    to_features[first + b, k] = slopes[k * LANES + b]
