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
from compress3d.splats.rasterize.pixels import Lattice, PixelLists, lattice_mask, list_pixels, tile_pixels
from compress3d.splats.rasterize.rasterization import render_each, scene_gaussians, scene_views
from compress3d.splats.rasterize.tiles import PEAK
from compress3d.splats.refit_kernels import composite, moves_of, pull, pull_pushed, spread
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
        """What `pull` and `pull_pushed` take."""
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
            sums = pull(*model.lists(model.residuals))
            sums[:, :3] *= model.colors > 0  # A colour that is clamped at black does not move.
            spread(self.means, model.view.position, self.degree, model.order, sums, *gradient, *diagonal)
        return gradient, diagonal

    def product(self, vector: _Vector) -> _Vector:
        """J^T J vector."""
        out = self._zeros()
        none = _Vector(np.zeros((0, 0, 0), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32))
        for model in self.views:
            moves = moves_of(self.means, model.view.position, self.degree, model.order, model.colors, *vector)
            sums = pull_pushed(*model.lists(moves))
            sums[:, :3] *= model.colors > 0  # A colour that is clamped at black does not move.
            spread(self.means, model.view.position, self.degree, model.order, sums, *out, *none)
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
    pixels = composite(*entries, colors)
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
