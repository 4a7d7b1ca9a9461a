"""Soft coverage of pixels by projected triangles: what one face does to one pixel, and sums over faces and pixels.

Coverage D = sigmoid(s d^2 / sigma) of Liu et al. 2019 (Soft Rasterizer, equation 1; see `soft_silhouettes`), with d the
distance from the pixel's centre to the triangle's outline and s = 1 inside, -1 outside. Lengths are pixels and sigma
is square pixels, all in float64. A pixel whose coverage would be below LEAST counts as not covered.

Triangles are (F, 6) arrays of u, v of three corners; one that holds NaN covers nothing. Forward, rows of pixels are
shared out in strips, each with the list of the triangles that reach it; backward, every triangle gathers by itself.
The memory is linear in pixels, faces and faces times the strips they reach.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

LEAST = 1e-4
"""Coverage below this is 0: the reach of a triangle is sqrt(sigma log(1 / LEAST - 1)) beyond its outline."""

STRIP = 16
"""Rows of pixels that one thread composites at a time."""


def reach_of(sigma: float) -> float:
    """How far beyond its outline a triangle covers, in pixels."""
    return math.sqrt(sigma * math.log(1 / LEAST - 1))


@nb.njit(cache=True)
def _nearest_on_edge(px, py, ax, ay, bx, by):  # pragma: no cover - compiled
    """Squared distance to the segment a-b, the place t in [0, 1] of the nearest point, and the vector from it."""
    ex, ey = bx - ax, by - ay
    length = ex * ex + ey * ey
    t = 0.0
    if length > 0.0:
        t = min(1.0, max(0.0, ((px - ax) * ex + (py - ay) * ey) / length))
    dx, dy = px - ax - t * ex, py - ay - t * ey
    return dx * dx + dy * dy, t, dx, dy


@nb.njit(cache=True)
def _outline(px, py, tri):  # pragma: no cover - compiled
    """Side (1.0 inside, -1.0 outside), squared distance to the outline, the nearest edge, t on it and the vector."""
    ax, ay, bx, by, cx, cy = tri[0], tri[1], tri[2], tri[3], tri[4], tri[5]
    best, t, dx, dy = _nearest_on_edge(px, py, ax, ay, bx, by)
    edge = 0
    other, other_t, other_x, other_y = _nearest_on_edge(px, py, bx, by, cx, cy)
    if other < best:
        best, t, dx, dy, edge = other, other_t, other_x, other_y, 1
    other, other_t, other_x, other_y = _nearest_on_edge(px, py, cx, cy, ax, ay)
    if other < best:
        best, t, dx, dy, edge = other, other_t, other_x, other_y, 2
    first = (bx - ax) * (py - ay) - (by - ay) * (px - ax)
    second = (cx - bx) * (py - by) - (cy - by) * (px - bx)
    third = (ax - cx) * (py - cy) - (ay - cy) * (px - cx)
    inside = (first > 0.0 and second > 0.0 and third > 0.0) or (first < 0.0 and second < 0.0 and third < 0.0)
    return (1.0 if inside else -1.0), best, edge, t, dx, dy


@nb.njit(cache=True)
def _sigmoid(x):  # pragma: no cover - compiled
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    power = math.exp(x)
    return power / (1.0 + power)


@nb.njit(cache=True)
def _bounds(tri, reach, width, height):  # pragma: no cover - compiled
    """First column, end, first row, end of the pixels whose centres the triangle may cover; empty for NaN."""
    low_x, high_x = min(tri[0], tri[2], tri[4]) - reach, max(tri[0], tri[2], tri[4]) + reach
    low_y, high_y = min(tri[1], tri[3], tri[5]) - reach, max(tri[1], tri[3], tri[5]) + reach
    if not (high_x > 0.0 and high_y > 0.0 and low_x < width and low_y < height):
        return 0, 0, 0, 0
    first_x, end_x = max(0.0, math.ceil(low_x - 0.5)), min(width - 1.0, math.floor(high_x - 0.5)) + 1.0
    first_y, end_y = max(0.0, math.ceil(low_y - 0.5)), min(height - 1.0, math.floor(high_y - 0.5)) + 1.0
    return int(first_x), int(end_x), int(first_y), int(end_y)


@nb.njit(cache=True)
def list_strips(triangles, reach, width, height):  # pragma: no cover - compiled
    """Which triangles reach each strip of STRIP rows: (strips + 1,) starts and (entries,) faces, in face order."""
    strips = (height + STRIP - 1) // STRIP
    starts = np.zeros(strips + 1, np.int64)
    for face in range(triangles.shape[0]):
        first_x, end_x, first_y, end_y = _bounds(triangles[face], reach, width, height)
        if first_x < end_x and first_y < end_y:
            for strip in range(first_y // STRIP, (end_y - 1) // STRIP + 1):
                starts[strip + 1] += 1
    for strip in range(strips):
        starts[strip + 1] += starts[strip]
    cursors = starts[:-1].copy()
    faces = np.empty(starts[strips], np.int64)
    for face in range(triangles.shape[0]):
        first_x, end_x, first_y, end_y = _bounds(triangles[face], reach, width, height)
        if first_x < end_x and first_y < end_y:
            for strip in range(first_y // STRIP, (end_y - 1) // STRIP + 1):
                faces[cursors[strip]] = face
                cursors[strip] += 1
    return starts, faces


@nb.njit(parallel=True, cache=True)
def composite(triangles, strengths, starts, faces, sigma, reach, width, height):  # pragma: no cover - compiled
    """Product over faces of 1 - strength D for each pixel, kept in two parts for the backward pass.

    Returns:
        (H, W) the product of the factors that are not 0, and (H, W) the number of those that are.
    """
    product, zeros = np.ones((height, width)), np.zeros((height, width), np.int32)
    limit = reach * reach
    for strip in nb.prange(len(starts) - 1):
        for entry in range(starts[strip], starts[strip + 1]):
            face = faces[entry]
            tri, strength = triangles[face], strengths[face]
            first_x, end_x, first_y, end_y = _bounds(tri, reach, width, height)
            for y in range(max(first_y, strip * STRIP), min(end_y, (strip + 1) * STRIP)):
                for x in range(first_x, end_x):
                    side, squared, _, _, _, _ = _outline(x + 0.5, y + 0.5, tri)
                    if side < 0.0 and squared > limit:
                        continue
                    factor = 1.0 - strength * _sigmoid(side * squared / sigma)
                    if factor == 0.0:
                        zeros[y, x] += 1
                    else:
                        product[y, x] *= factor
    return product, zeros


@nb.njit(parallel=True, cache=True)
def composite_backward(triangles, strengths, product, zeros, v_product, sigma, reach):  # pragma: no cover - compiled
    """Gradients of the triangles (F, 6) and strengths (F,), from that of the whole product (H, W)."""
    height, width = product.shape
    limit = reach * reach
    v_triangles, v_strengths = np.zeros_like(triangles), np.zeros_like(strengths)
    for face in nb.prange(triangles.shape[0]):
        tri, strength = triangles[face], strengths[face]
        first_x, end_x, first_y, end_y = _bounds(tri, reach, width, height)
        for y in range(first_y, end_y):
            for x in range(first_x, end_x):
                side, squared, edge, t, dx, dy = _outline(x + 0.5, y + 0.5, tri)
                if side < 0.0 and squared > limit:
                    continue
                coverage = _sigmoid(side * squared / sigma)
                factor = 1.0 - strength * coverage
                # The product of the other faces' factors, which division cannot give where this one is 0.
                others = product[y, x]
                if factor == 0.0:
                    others = others if zeros[y, x] == 1 else 0.0
                else:
                    others = others / factor if zeros[y, x] == 0 else 0.0
                v_factor = v_product[y, x] * others
                v_strengths[face] -= v_factor * coverage
                slope = -v_factor * strength * coverage * (1.0 - coverage) * side / sigma * -2.0
                start, end = 2 * edge, (2 * edge + 2) % 6
                v_triangles[face, start] += slope * (1.0 - t) * dx
                v_triangles[face, start + 1] += slope * (1.0 - t) * dy
                v_triangles[face, end] += slope * t * dx
                v_triangles[face, end + 1] += slope * t * dy
    return v_triangles, v_strengths


@nb.njit(parallel=True, cache=True)
def gather(triangles, values, sigma, reach):  # pragma: no cover - compiled
    """For each face, the sum over pixels of D and of D times the pixel's value ((H, W)); (F, 2)."""
    height, width = values.shape
    limit = reach * reach
    sums = np.zeros((triangles.shape[0], 2))
    for face in nb.prange(triangles.shape[0]):
        tri = triangles[face]
        first_x, end_x, first_y, end_y = _bounds(tri, reach, width, height)
        footprint, inside = 0.0, 0.0
        for y in range(first_y, end_y):
            for x in range(first_x, end_x):
                side, squared, _, _, _, _ = _outline(x + 0.5, y + 0.5, tri)
                if side < 0.0 and squared > limit:
                    continue
                coverage = _sigmoid(side * squared / sigma)
                footprint += coverage
                inside += coverage * values[y, x]
        sums[face, 0], sums[face, 1] = footprint, inside
    return sums
