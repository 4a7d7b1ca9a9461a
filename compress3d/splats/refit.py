"""Refit colours, opacities and sizes to the original's renders by Gauss-Newton: no backward pass, no photographs.

With the blending weights w = alpha T of a pixel listed front to back, everything a first-order model of the pixel needs
is at hand. For Gaussian k with colour c_k and S_k the light that arrives from behind it,

    d pixel / d c_k = w_k        d pixel / d log alpha_k = w_k c_k - S_k alpha_k / (1 - alpha_k)
    d log alpha_k / d log opacity = 1        d log alpha_k / d log scale = 2 ln(opacity / alpha_k)

(the last for scaling all three axes, without the low-pass). The damped normal equations over all pixels are solved by
preconditioned conjugate gradients, whose products walk the pixel lists; then the lists are made anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import torch

from compress3d.cameras import Cameras
from compress3d.splats.rasterize.cpu import Gaussians, Lens, View, project_view, view_colors
from compress3d.splats.rasterize.harmonics import fill_basis
from compress3d.splats.rasterize.pixels import Lattice, PixelLists, lattice_mask, list_pixels, tile_pixels
from compress3d.splats.rasterize.project import FAST_MATH
from compress3d.splats.rasterize.rasterization import render_each, scene_gaussians, scene_views
from compress3d.splats.rasterize.tiles import PEAK
from compress3d.splats.scene import SplatScene

_OPACITY_MAX = 0.9995
_WEIGHT_MIN = 1e-4


@dataclass(frozen=True, slots=True)
class Refit:
    """Gauss-Newton steps on spherical harmonics, opacities and isotropic size.

    Time is linear in pixel-list entries times `rounds * iterations`; memory is 8 bytes an entry.

    Args:
        rounds: Gauss-Newton steps; a step that does not lower the error is taken back.
        iterations: conjugate-gradient iterations in each.
        entries: about so many pixel-list entries are looked at: one row of pixels in two or more, others each round.
        damping_sh0, damping_shN, damping_opacity, damping_scale: Levenberg-Marquardt damping, relative to the
            diagonal of the normal equations.
    """

    rounds: int = 2
    iterations: int = 4
    entries: int = 20_000_000
    damping_sh0: float = 0.02
    damping_shN: float = 0.3
    damping_opacity: float = 0.05
    damping_scale: float = 0.05

    def __call__(
        self,
        scene: SplatScene,
        cameras: Cameras,
        images: np.ndarray,
        progress: Callable[[float], None] | None = None,
    ) -> SplatScene:
        """Refit a scene to images.

        Args:
            scene: N Gaussians on the CPU.
            cameras: C views.
            images: (C, H, W, 3) float32 renders of the original at these views, on white.
            progress: called with the share done, 0 to 1.
        """
        best, best_error, steps = scene, math.inf, self.rounds * (self.iterations + 2)
        current, stride = scene, self._stride(scene, cameras)
        for number in range(self.rounds):

            def report(step: int, number: int = number) -> None:
                if progress is not None:
                    progress((number * (self.iterations + 2) + step) / steps)

            model = _Linearised.of(current, cameras, images, stride, number)
            report(1)
            if model.error > best_error:
                break
            best, best_error = current, model.error
            current = model.moved(current, self._solve(model, report))
        # Each round looked at other pixels: whole images decide.
        return min(dict.fromkeys((scene, best, current)), key=lambda one: _error(one, cameras, images))

    def _stride(self, scene: SplatScene, cameras: Cameras) -> int:
        """Every how many rows of pixels are looked at, by the entries of two views."""
        gaussians, lens, entries = scene_gaussians(scene), Lens(antialiased=scene.antialiased), 0
        probes = [cameras[0], cameras[len(cameras) // 2]]
        for probe in probes:
            view = scene_views(probe)[0]
            _, tiles = project_view(gaussians, view, lens)
            entries += 8 * len(list_pixels(tiles, view.width, view.height, Lattice(8, 4), _WEIGHT_MIN).ranks)
        return max(2, math.ceil(entries * len(cameras) / len(probes) / self.entries))

    def _solve(self, model: _Linearised, report: Callable[[int], None]) -> _Vector:
        gradient, diagonal = model.gradient()
        damping = self._damping(diagonal)
        inverse = [1.0 / (d + r) for d, r in zip(diagonal, damping, strict=True)]
        solution = _Vector(*(np.zeros_like(part) for part in gradient))
        residual = gradient
        direction = _Vector(*(m * r for m, r in zip(inverse, residual, strict=True)))
        power = _dot(residual, direction)
        for iteration in range(self.iterations):
            if not power > 0:
                break
            image = model.product(direction)
            image = _Vector(*(a + r * d for a, r, d in zip(image, damping, direction, strict=True)))
            step = np.float32(power / _dot(direction, image))
            solution = _Vector(*(x + step * d for x, d in zip(solution, direction, strict=True)))
            residual = _Vector(*(r - step * a for r, a in zip(residual, image, strict=True)))
            scaled = [m * r for m, r in zip(inverse, residual, strict=True)]
            next_power = _dot(residual, scaled)
            ratio = np.float32(next_power / power)
            direction = _Vector(*(z + ratio * d for z, d in zip(scaled, direction, strict=True)))
            power = next_power
            report(iteration + 2)
        return solution

    def _damping(self, diagonal: _Vector) -> _Vector:
        """Per unknown: a share of its own curvature plus one of the typical, so that the unseen stay where they are."""
        typical = [_median_positive(part if part.ndim == 1 else part[:, 0, 0]) for part in diagonal]
        base = diagonal.coefficients[:, :1]
        coefficients = np.empty_like(diagonal.coefficients)
        coefficients[:, :1] = self.damping_sh0 * (base + 0.05 * typical[0])
        coefficients[:, 1:] = self.damping_shN * (0.3 * base + 0.05 * typical[0])
        return _Vector(
            coefficients,
            self.damping_opacity * (diagonal.opacities + np.float32(0.2 * typical[1])),
            self.damping_scale * (diagonal.sizes + np.float32(0.2 * typical[2])),
        )


class _Vector(NamedTuple):
    """A step, a gradient or a diagonal: SH (N, K, 3 or 1), log-opacities (N,), log-sizes (N,), float32."""

    coefficients: np.ndarray
    opacities: np.ndarray
    sizes: np.ndarray


class _ViewModel(NamedTuple):
    view: View
    order: np.ndarray  # (M,) Gaussian of each rank
    log_peaks: np.ndarray  # (M,) log-opacity of each rank in this view
    entries: PixelLists
    colors: np.ndarray  # (M, 3)
    pixels: np.ndarray  # (P, 3) what the scene renders
    residuals: np.ndarray  # (P, 3) target minus that

    def lists(self, argument: np.ndarray) -> tuple[Any, ...]:
        """What `_pull` and `_pull_pushed` take."""
        return (*self.entries, self.colors, self.log_peaks, self.pixels, argument, nb.get_num_threads())


class _Linearised:
    """A scene's first-order model over the listed pixels of all views."""

    def __init__(self, means: np.ndarray, shape: tuple[int, int, int], degree: int, views: list[_ViewModel]) -> None:
        self.means, self.shape, self.degree, self.views = means, shape, degree, views
        squares = sum(float(np.square(view.residuals, dtype=np.float64).sum()) for view in views)
        self.error = squares / max(1, sum(view.residuals.size for view in views))

    @classmethod
    def of(cls, scene: SplatScene, cameras: Cameras, images: np.ndarray, stride: int, shift: int) -> _Linearised:
        gaussians, lens = scene_gaussians(scene), Lens(antialiased=scene.antialiased)
        models = [
            _view_model(scene, gaussians, view, lens, image, Lattice(stride, (index + shift) % stride))
            for index, (view, image) in enumerate(zip(scene_views(cameras), images, strict=True))
        ]
        return cls(gaussians.means, (len(scene), scene.shN.shape[1] + 1, 3), scene.sh_degree, models)

    def gradient(self) -> tuple[_Vector, _Vector]:
        """J^T residual, and the diagonal of J^T J (its SH part (N, K, 1))."""
        count, terms, _ = self.shape
        gradient, diagonal = self._zeros(), _Vector(np.zeros((count, terms, 1), np.float32), *self._zeros()[1:])
        for model in self.views:
            sums = _pull(*model.lists(model.residuals))
            sums[:, :3] *= model.colors > 0  # A colour that is clamped at black does not move.
            _spread(self.means, model.view.position, self.degree, model.order, sums, *gradient, *diagonal)
        return gradient, diagonal

    def product(self, vector: _Vector) -> _Vector:
        """J^T J vector."""
        out = self._zeros()
        none = _Vector(np.zeros((0, 0, 0), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32))
        for model in self.views:
            moves = _moves(self.means, model.view.position, self.degree, model.order, model.colors, *vector)
            sums = _pull_pushed(*model.lists(moves))
            sums[:, :3] *= model.colors > 0  # A colour that is clamped at black does not move.
            _spread(self.means, model.view.position, self.degree, model.order, sums, *out, *none)
        return out

    def moved(self, scene: SplatScene, step: _Vector) -> SplatScene:
        """The scene after a step, bounded to where the model can be trusted."""
        coefficients = torch.cat([scene.sh0, scene.shN], dim=1) + torch.from_numpy(step.coefficients)
        opacities = torch.sigmoid(scene.opacities) * torch.exp(torch.from_numpy(step.opacities).clamp(-0.7, 0.7))
        opacities = torch.logit(opacities.clamp(1e-6, _OPACITY_MAX))
        still = torch.from_numpy(step.opacities == 0)
        return scene.with_tensors(
            sh0=coefficients[:, :1].contiguous(),
            shN=coefficients[:, 1:].contiguous(),
            opacities=torch.where(still, scene.opacities, opacities),
            scales=scene.scales + torch.from_numpy(step.sizes).clamp(-0.35, 0.35)[:, None],
        )

    def _zeros(self) -> _Vector:
        count = self.shape[0]
        return _Vector(np.zeros(self.shape, np.float32), np.zeros(count, np.float32), np.zeros(count, np.float32))


def _view_model(
    scene: SplatScene, gaussians: Gaussians, view: View, lens: Lens, image: np.ndarray, lattice: Lattice
) -> _ViewModel:
    _, tiles = project_view(gaussians, view, lens)
    colors = view_colors(gaussians, scene.sh0.numpy(), scene.shN.numpy(), scene.sh_degree, view, tiles.order)
    entries = list_pixels(tiles, view.width, view.height, lattice, _WEIGHT_MIN)
    pixels = _composite(*entries, colors)
    listed = tile_pixels(lattice_mask(view.width, view.height, lattice))
    residuals = (tile_pixels(image) - pixels) * listed
    return _ViewModel(view, tiles.order, np.log(tiles.ellipses[:, PEAK]), entries, colors, pixels, residuals)


def _error(scene: SplatScene, cameras: Cameras, images: np.ndarray, views: int = 3) -> float:
    """Mean squared error over a few whole views, summed over them."""
    every = max(1, len(cameras) // views)
    drawn = render_each(scene, cameras[::every])
    return sum(
        float(np.square(image.numpy() - wanted, dtype=np.float64).mean())
        for (image, _), wanted in zip(drawn, images[::every], strict=True)
    )


def _dot(first, second) -> float:
    # Not BLAS: its threads spin for a while after each call and take the cores from the next kernel.
    return sum(float(np.multiply(a, b).sum(dtype=np.float64)) for a, b in zip(first, second, strict=True))


def _median_positive(values: np.ndarray) -> float:
    positive = values[values > 0]
    return float(np.median(positive)) if len(positive) else 1.0


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def _composite(starts, ranks, weights, colors):
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
def _pull(starts, ranks, weights, colors, log_peaks, pixels, residuals, threads):
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
def _pull_pushed(starts, ranks, weights, colors, log_peaks, pixels, moves, threads):
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
def _moves(means, camera, degree, order, colors, coefficients, opacities, sizes):
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
def _spread(means, camera, degree, order, sums, coefficients, opacities, sizes, squares, opacity_squares, size_squares):
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
