"""Numba kernels of the hash grid: features at positions, and the gradients to table and positions.

A sample's eight vertices are corner c = x + 2 y + 4 z of its cell. When gradients are summed up, each level is the
work of one thread from the first sample to the last: no two threads write one row, and sums have always one order.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from compress3d.nerf.levels import PRIMES

FAST_MATH = {"contract", "reassoc", "nsz", "arcp"}
BLOCK = 1024
"""Samples that a thread takes at a time."""

_Y, _Z = np.uint32(PRIMES[1]), np.uint32(PRIMES[2])
_ONE = np.uint32(1)


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy", inline="always")
def _cell(positions, n, axis, scale, side):  # pragma: no cover - compiled
    """The cell and the offset in it of one coordinate; what lies outside of the unit cube counts as on its side."""
    real = positions.dtype.type
    along = min(max(positions[n, axis], real(0)), real(1)) * scale + real(0.5)
    cell = min(np.int32(along), np.int32(side) - np.int32(2))
    return np.uint32(cell), along - real(cell)


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy", inline="always")
def _rows(i, j, k, side, mask):  # pragma: no cover - compiled
    """The eight rows of a cell within its level; a mask of 0 says that the level is dense."""
    if mask == 0:
        base = i + side * (j + side * k)
        y, z = side, side * side
        return (
            base, base + _ONE, base + y, base + y + _ONE, base + z, base + z + _ONE, base + z + y, base + z + y + _ONE
        )  # fmt: skip
    j0, k0 = j * _Y, k * _Z
    j1, k1 = j0 + _Y, k0 + _Z
    i1 = i + _ONE
    a, b, c, d = j0 ^ k0, j1 ^ k0, j0 ^ k1, j1 ^ k1
    return (
        (i ^ a) & mask, (i1 ^ a) & mask, (i ^ b) & mask, (i1 ^ b) & mask,
        (i ^ c) & mask, (i1 ^ c) & mask, (i ^ d) & mask, (i1 ^ d) & mask,
    )  # fmt: skip


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy", inline="always")
def _weights(u, v, w, one):  # pragma: no cover - compiled
    """The eight trilinear weights."""
    p, q, r = one - u, one - v, one - w
    a, b, c, d = q * r, v * r, q * w, v * w
    return p * a, u * a, p * b, u * b, p * c, u * c, p * d, u * d


@nb.njit(cache=True, inline="always")
def _stored(row, start, slots):  # pragma: no cover - compiled
    """Where a row is in the table that is left: -1 where it was cut."""
    return np.int64(row) + start if slots.size == 0 else np.int64(slots[np.int64(row) + start])


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def interpolate(positions, table, scales, sides, masks, starts, slots, lanes, features):  # pragma: no cover - compiled
    """Fill (N, L F) `features`; `lanes` is a tuple of F numbers, whose length the compiler knows."""
    width = np.uintp(len(lanes))
    count, levels = len(positions), len(scales)
    blocks = (count + BLOCK - 1) // BLOCK
    for task in nb.prange(blocks):
        first, last = task * BLOCK, min((task + 1) * BLOCK, count)
        for level in range(levels):
            scale, side, mask, start = scales[level], sides[level], masks[level], starts[level]
            column = np.uintp(level) * width
            for n in range(np.uintp(first), np.uintp(last)):
                i, u = _cell(positions, n, 0, scale, side)
                j, v = _cell(positions, n, 1, scale, side)
                k, w = _cell(positions, n, 2, scale, side)
                rows, weights = _rows(i, j, k, side, mask), _weights(u, v, w, positions.dtype.type(1))
                if slots.size == 0:
                    r0, r1 = np.uintp(rows[0]) + np.uintp(start), np.uintp(rows[1]) + np.uintp(start)
                    r2, r3 = np.uintp(rows[2]) + np.uintp(start), np.uintp(rows[3]) + np.uintp(start)
                    r4, r5 = np.uintp(rows[4]) + np.uintp(start), np.uintp(rows[5]) + np.uintp(start)
                    r6, r7 = np.uintp(rows[6]) + np.uintp(start), np.uintp(rows[7]) + np.uintp(start)
                    for f in range(width):
                        features[n, column + f] = (
                            weights[0] * table[r0, f] + weights[1] * table[r1, f]
                            + weights[2] * table[r2, f] + weights[3] * table[r3, f]
                            + weights[4] * table[r4, f] + weights[5] * table[r5, f]
                            + weights[6] * table[r6, f] + weights[7] * table[r7, f]
                        )  # fmt: skip
                else:
                    for f in range(width):
                        features[n, column + f] = 0
                    for c in range(8):
                        row = _stored(rows[c], start, slots)
                        if row >= 0:
                            for f in range(width):
                                features[n, column + f] += weights[c] * table[np.uintp(row), f]


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def scatter(
    positions, slopes, scales, sides, masks, starts, slots, lanes, order, gradient
):  # pragma: no cover - compiled
    """Add to the (rows, F) `gradient` what (N, L F) `slopes` of the features make of it, levels in `order`."""
    width = np.uintp(len(lanes))
    count = np.uintp(len(positions))
    for task in nb.prange(len(order)):
        level = order[task]
        scale, side, mask, start = scales[level], sides[level], masks[level], starts[level]
        column = np.uintp(level) * width
        for n in range(count):
            i, u = _cell(positions, n, 0, scale, side)
            j, v = _cell(positions, n, 1, scale, side)
            k, w = _cell(positions, n, 2, scale, side)
            rows, weights = _rows(i, j, k, side, mask), _weights(u, v, w, positions.dtype.type(1))
            for c in range(8):
                row = _stored(rows[c], start, slots)
                if row >= 0:
                    for f in range(width):
                        gradient[np.uintp(row), f] += weights[c] * slopes[n, column + f]


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def position_gradient(
    positions, slopes, table, scales, sides, masks, starts, slots, gradient
):  # pragma: no cover - compiled
    """Fill the (N, 3) `gradient` to the positions; 0 along coordinates outside of the unit cube."""
    count, width = len(positions), table.shape[1]
    for n in nb.prange(count):
        real = positions.dtype.type
        gx = gy = gz = real(0)
        for level in range(len(scales)):
            scale, side, start = scales[level], sides[level], starts[level]
            i, u = _cell(positions, n, 0, scale, side)
            j, v = _cell(positions, n, 1, scale, side)
            k, w = _cell(positions, n, 2, scale, side)
            rows = _rows(i, j, k, side, masks[level])
            for c in range(8):
                row = _stored(rows[c], start, slots)
                if row < 0:
                    continue
                dot = real(0)
                for f in range(width):
                    dot += table[row, f] * slopes[n, level * width + f]
                a = u if c & 1 else real(1) - u
                b = v if c & 2 else real(1) - v
                d = w if c & 4 else real(1) - w
                gx += (dot if c & 1 else -dot) * b * d * scale
                gy += (dot if c & 2 else -dot) * a * d * scale
                gz += (dot if c & 4 else -dot) * a * b * scale
        gradient[n, 0] = gx if 0 <= positions[n, 0] <= 1 else real(0)
        gradient[n, 1] = gy if 0 <= positions[n, 1] <= 1 else real(0)
        gradient[n, 2] = gz if 0 <= positions[n, 2] <= 1 else real(0)
