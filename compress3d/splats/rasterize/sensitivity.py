"""How strongly the pixels of some views hang on each Gaussian: one front-to-back walk a view, no loss, no autograd.

A pixel is linear in the alpha of each Gaussian on its ray. With S_k the light from behind Gaussian k (see `refit`),

    slope_k = d pixel / d log alpha_k = w_k c_k - S_k alpha_k / (1 - alpha_k)

is what the pixel would lose if Gaussian k alone were removed. All derivatives by what alpha is made of are slopes times
polynomials in the pixel's offset (dx, dy) from the ellipse's centre:

    d log alpha / d (u, v, A, B, C, log peak) = (A dx + B dy, B dx + C dy, -dx^2 / 2, -dx dy, -dy^2 / 2, 1)

So the 15 moments of slope^2 up to degree 4 hold the sum over the pixels of every product of two such derivatives, and
the Jacobian of the projection takes that from the screen to means and scales, once a Gaussian and view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numba as nb
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize.blend import (
    LANES,
    PIXELS,
    STOP_CHECK,
    any_open,
    falloff,
    light_after,
    open_tile,
    row_bounds,
    row_parabola,
    seen_alpha,
    spread,
)
from compress3d.splats.rasterize.blend import TRANSMITTANCE_MIN as STOP
from compress3d.splats.rasterize.cpu import Gaussians, Lens, Projection, View, as_array, blend_view, project_view
from compress3d.splats.rasterize.cpu import view_colors as colors_toward
from compress3d.splats.rasterize.project import ALPHA_MAX, FAST_MATH
from compress3d.splats.rasterize.project_backward import project_backward
from compress3d.splats.rasterize.rasterization import scene_gaussians, scene_views
from compress3d.splats.rasterize.tiles import TILE, A, B, C, TileLists, V
from compress3d.splats.scene import SplatScene

Channels = Literal["separate", "summed"]
"""Whether each colour channel of a pixel is an output of its own, or their sum is the one output."""

_DEGREE, _MOMENTS = 4, 15
_REMOVAL, _FALLOFF, _COLUMNS = _MOMENTS, _MOMENTS + 1, _MOMENTS + 2
_FIRST = np.array([0, 5, 9, 12, 14])
"""Column of dy^j; those of dx dy^j, dx^2 dy^j and so on follow it."""

_EXPONENTS = ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (0, 0))
"""(dx, dy): the monomials that the derivatives by u, v, A, B, C and log peak are made of."""
_PRODUCTS = np.array([[_FIRST[b + d] + a + c for c, d in _EXPONENTS] for a, b in _EXPONENTS])
"""(6, 6) columns of the moments of the products of two monomials."""

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
_ALPHA_MAX, _STOP = np.float32(ALPHA_MAX), np.float32(STOP)


class SquaredChanges(NamedTuple):
    """Sums over all pixels of all views.

    Args:
        removal: (N,) over channels too, of the squared change that removing the Gaussian alone would make.
        falloff: (N,) of (d sum of the pixel's channels / d G)^2, G being the Gaussian's falloff, 0 to 1, at the pixel.
    """

    removal: Float[Tensor, " N"]
    falloff: Float[Tensor, " N"]


def squared_changes(
    scene: SplatScene, cameras: Cameras, progress: Callable[[int], None] | None = None
) -> SquaredChanges:
    """Gather both sums; the scene stands on white.

    Removal is exact where no ray of the Gaussian ends early for want of light. Time is about three times that of
    rendering the views; memory is 72 bytes a tile intersection, for one view at a time.

    Args:
        scene: on the CPU.
        cameras: the views.
        progress: called with the number of views done.
    """
    totals = np.zeros((len(scene), 2), np.float64)
    for seen in _walk_views(scene, cameras, False, progress):
        totals[seen.tiles.order] += seen.sums[:, [_REMOVAL, _FALLOFF]]
    return SquaredChanges(*torch.from_numpy(totals).T.contiguous())


def fisher_information(
    scene: SplatScene,
    cameras: Cameras,
    channels: Channels = "separate",
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "N 6 6"]:
    """Sum over pixels and channels of g g^T, with g the derivative of a pixel by a Gaussian's mean and linear scales.

    The colour counts as fixed: what spherical harmonics change as a mean moves is left out. The scene stands on white;
    at the clamp of alpha the derivative is 0. Arguments as `squared_changes`; twice its time, and 580 bytes a Gaussian.

    Args:
        channels: see `Channels`.

    Returns:
        (N, 6, 6) float64, rows and columns in the order mean x, y, z, scale 0, 1, 2; 0 for what is never seen.
    """
    totals = np.zeros((len(scene), 6, 6), np.float64)
    for seen in _walk_views(scene, cameras, channels == "summed", progress):
        jacobians = _projection_jacobians(seen)
        _add_information(seen.tiles.order, seen.tiles.ellipses, seen.sums, jacobians, _PRODUCTS, totals)
    return torch.from_numpy(totals)


class _Seen(NamedTuple):
    """One view: what was walked, and the sums (M, columns) of each visible Gaussian, in the order of the lists."""

    gaussians: Gaussians
    view: View
    lens: Lens
    projection: Projection
    tiles: TileLists
    sums: np.ndarray


def _walk_views(
    scene: SplatScene, cameras: Cameras, summed: bool, progress: Callable[[int], None] | None
) -> Iterator[_Seen]:
    gaussians, lens = scene_gaussians(scene), Lens(antialiased=scene.antialiased)
    sh0, shN, white = as_array(scene.sh0), as_array(scene.shN), np.ones(3, np.float32)
    for index, view in enumerate(scene_views(cameras)):
        projection, tiles = project_view(gaussians, view, lens)
        colors = np.ascontiguousarray(colors_toward(gaussians, sh0, shN, scene.sh_degree, view, tiles.order))
        image, _ = blend_view(tiles, colors, white, view)
        by_tile = _walk(tiles.ellipses, tiles.starts, tiles.ranks, colors, image, summed, nb.get_num_threads())
        yield _Seen(gaussians, view, lens, projection, tiles, _sum_by_rank(tiles.ranks, by_tile, len(tiles.order)))
        if progress is not None:
            progress(index + 1)


def _projection_jacobians(seen: _Seen) -> np.ndarray:
    """(M, 6, 6) derivatives of u, v, A, B, C and log peak (rows) by mean and linear scales, of the visible Gaussians.

    The projection's own backward pass, once for each output.
    """
    order = seen.tiles.order
    gaussians = [np.ascontiguousarray(part[order]) for part in seen.gaussians]
    _, conics, _, peaks, radii = (np.ascontiguousarray(part[order]) for part in seen.projection)
    camera = (seen.view.viewmat, seen.view.K, seen.view.width, seen.view.height)
    jacobians = np.zeros((len(order), 6, 6), np.float32)
    for output in range(6 if seen.lens.antialiased else 5):
        unit = np.zeros((len(order), 6), np.float32)
        unit[:, output] = 1.0 if output < 5 else 1.0 / peaks
        toward = (unit[:, :2].copy(), unit[:, 2:5].copy(), np.zeros(len(order), np.float32), unit[:, 5].copy())
        options = (np.float32(seen.lens.eps2d), seen.lens.antialiased)
        arguments: tuple[Any, ...] = (*gaussians, *camera, *options, conics, peaks, radii, *toward)
        v_means, _, v_scales, _, _ = project_backward(*arguments)
        jacobians[:, output, :3], jacobians[:, output, 3:] = v_means, v_scales
    return jacobians


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def _walk(ellipses, starts, ranks, colors, image, summed, threads):  # pragma: no cover - compiled
    """(intersections, 17) sums over the pixels of each tile intersection; the columns are named above."""
    height, width, channels = image.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    sums = np.zeros((len(ranks), _COLUMNS), np.float32)
    for task in nb.prange(tiles_x * tiles_y):
        tile = spread(np.int64(task), tiles_x * tiles_y, threads)
        left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
        columns, rows = min(TILE, width - left), min(TILE, height - top)
        transmittances, behind = np.empty(PIXELS, np.float32), np.zeros(channels * PIXELS, np.float32)
        weights, ratios, inverses = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
        squares, totals, powers = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(5, np.float32)
        open_tile(transmittances, rows, columns)
        for row in range(rows):
            for column in range(columns):
                for channel in range(channels):
                    behind[channel * PIXELS + row * TILE + column] = image[top + row, left + column, channel]
        x = np.float32(left) + np.float32(0.5)
        for at in range(starts[tile], starts[tile + 1]):
            if (at - starts[tile]) % STOP_CHECK == STOP_CHECK - 1 and not any_open(transmittances):
                break
            rank = ranks[at]
            first, last = row_bounds(ellipses, rank, np.float32(top), rows)
            for row in range(first, last):
                y = np.float32(top + row) + np.float32(0.5)
                dx, dy = _row_alphas(ellipses, rank, x, y, transmittances, row * TILE, weights, ratios, inverses)
                _row_slopes(colors, rank, behind, row * TILE, weights, ratios, squares, totals)
                removal, response = _row_moments(squares, totals, inverses, summed, dx, powers)
                sums[at, _REMOVAL] += removal
                sums[at, _FALLOFF] += response
                up = _ONE
                for j in range(_DEGREE + 1):
                    for i in range(_DEGREE + 1 - j):
                        sums[at, _FIRST[j] + i] += powers[i] * up
                    up *= dy
    return sums


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _row_alphas(ellipses, rank, x, y, transmittances, row, weights, ratios, inverses):  # pragma: no cover - compiled
    """As `row_weights`; `ratios` are alpha / (1 - alpha), and `inverses` 1 / falloff, or 0 at the clamp of alpha.

    Returns:
        offset of the row's first pixel from the ellipse's centre.
    """
    dx0, a, b, c, peak = row_parabola(ellipses, rank, x, y)
    start = np.uintp(row)
    for k in range(LANES):
        dx = dx0 + np.float32(k)
        z = (a * dx + b) * dx + c
        power = falloff(z)
        raw = peak * power
        alpha = seen_alpha(raw, z)
        before = transmittances[start + k]
        light = max(before, _ZERO)
        through = _ONE - alpha
        after = light * through
        weight = alpha * light if after > _STOP else _ZERO
        weights[k] = weight
        ratios[k] = alpha / through if weight > _ZERO else _ZERO
        inverses[k] = _ONE / power if raw <= _ALPHA_MAX else _ZERO
        transmittances[start + k] = light_after(before, after)
    return dx0, y - ellipses[rank, V]


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _row_slopes(colors, rank, behind, row, weights, ratios, squares, totals):  # pragma: no cover - compiled
    """Sums over the channels of slope^2 and of slope, for sixteen pixels; the light from behind is carried on."""
    for k in range(LANES):
        squares[k], totals[k] = _ZERO, _ZERO
    for channel in range(colors.shape[1]):
        value, first = colors[rank, channel], np.uintp(channel * PIXELS + row)
        for k in range(LANES):
            own = weights[k] * value
            rest = behind[first + k] - own
            behind[first + k] = rest
            slope = own - rest * ratios[k]
            squares[k] += slope * slope
            totals[k] += slope


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _row_moments(squares, totals, inverses, summed, dx0, powers):  # pragma: no cover - compiled
    """Sums over a row: of slope^2 dx^i (into `powers`); of slope^2 with the clamp, and of (slope / falloff)^2."""
    removal, response = _ZERO, _ZERO
    p0, p1, p2, p3, p4 = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for k in range(LANES):
        dx = dx0 + np.float32(k)
        removal += squares[k]
        change = totals[k] * inverses[k]
        response += change * change
        square = totals[k] * totals[k] if summed else squares[k]
        square = square if inverses[k] > _ZERO else _ZERO
        p0 += square
        square *= dx
        p1 += square
        square *= dx
        p2 += square
        square *= dx
        p3 += square
        p4 += square * dx
    powers[0], powers[1], powers[2], powers[3], powers[4] = p0, p1, p2, p3, p4
    return removal, response


@nb.njit(cache=True)
def _sum_by_rank(ranks, by_tile, count):  # pragma: no cover - compiled
    """(count, columns) float64 sums of the intersections of each rank."""
    sums = np.zeros((count, by_tile.shape[1]), np.float64)
    for at in range(len(ranks)):
        for column in range(by_tile.shape[1]):
            sums[ranks[at], column] += by_tile[at, column]
    return sums


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _add_information(order, ellipses, sums, jacobians, products, totals):  # pragma: no cover - compiled
    """totals[i] += (E J)^T P (E J), with P the moments of the six monomials, and E what the derivatives are made of."""
    for rank in nb.prange(len(order)):
        a, b, c = np.float64(ellipses[rank, A]), np.float64(ellipses[rank, B]), np.float64(ellipses[rank, C])
        by_monomial, half = np.empty((6, 6)), np.empty((6, 6))
        for k in range(6):
            u, v = np.float64(jacobians[rank, 0, k]), np.float64(jacobians[rank, 1, k])
            by_monomial[0, k] = a * u + b * v
            by_monomial[1, k] = b * u + c * v
            by_monomial[2, k] = -0.5 * jacobians[rank, 2, k]
            by_monomial[3, k] = -np.float64(jacobians[rank, 3, k])
            by_monomial[4, k] = -0.5 * jacobians[rank, 4, k]
            by_monomial[5, k] = jacobians[rank, 5, k]
        for j in range(6):
            for k in range(6):
                half[j, k] = 0.0
                for m in range(6):
                    half[j, k] += sums[rank, products[j, m]] * by_monomial[m, k]
        for j in range(6):
            for k in range(j, 6):
                value = 0.0
                for m in range(6):
                    value += by_monomial[m, j] * half[m, k]
                totals[order[rank], j, k] += value
                if j != k:
                    totals[order[rank], k, j] += value
