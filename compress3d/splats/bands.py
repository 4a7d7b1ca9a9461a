"""Spherical-harmonic bands that the pictures do not need, found by what leaving them out does to the pixels.

Band b is the 2 b + 1 coefficients of degree b. A pixel is a sum of colours c_i with blending weights w_i, so changing
one Gaussian's colour towards view v by d changes the squared error by exactly W_v |d|^2, W_v = sum over pixels of w^2.
With the basis values b_v towards each view, what stays can therefore be refitted to the colours that were, Gaussian by
Gaussian, by weighted least squares on at most nine unknowns; the coefficients that stay take up

    delta = (A_ss + r I)^-1 A_sd theta_d,    A = sum over v of W_v b_v b_v^T

of those dropped (theta_d). The ridge r stands for as much light from all around, where harmonics are orthogonal and
dropping some moves none of the others: it holds what few views leave open. Reduced-3DGS (Papantonakis et al. 2024)
drops bands, too, by thresholds on how far colours differ over the views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.formats.axes import sh_basis
from compress3d.splats.rasterize import render_each
from compress3d.splats.rasterize.cpu import Lens, project_view
from compress3d.splats.rasterize.pixels import Lattice, list_pixels
from compress3d.splats.rasterize.rasterization import scene_gaussians, scene_views
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene
from secateur.allocation import Budget, allocate
from secateur.metrics.image import psnr
from secateur.units import UnitGroup

_SH0 = math.sqrt(1 / (4 * math.pi))
_RIDGE = 0.01
"""Share of the light that the fit assumes from all around, beside that of the views."""

_CHUNK = 16_384
_WEIGHT_MIN = 1e-4
_MEASURED_VIEWS = 8


def band_errors(scene: SplatScene, cameras: Cameras) -> Float[Tensor, "N degrees"]:
    """What it costs to leave out the bands above each degree of one Gaussian, once what stays makes up for them.

    Time is about three times that of rendering the views; memory is 4 bytes a Gaussian and view, and 16 a pixel and
    Gaussian that colours it for one view at a time.

    Args:
        scene: N Gaussians on the CPU, of degree D.
        cameras: the views, at least one.

    Returns:
        (N, D) float64: at [i, d] the sum over pixels, channels and views of the squared error of the render if only
        Gaussian i loses its bands above d. Zeros for what no view sees.

    Raises:
        ValueError: there is no camera.
    """
    return _errors(scene, cameras, _squared_weights(scene, cameras))


def drop_bands(scene: SplatScene, cameras: Cameras, share: float) -> SplatScene:
    """Leave only `share` of the coefficients above degree 0, those that the views would miss most.

    Gaussians lose their highest band first; the bands with the least error a coefficient go first. What stays of a
    Gaussian is refitted; a Gaussian that loses nothing keeps its bits.

    Args:
        scene: N Gaussians on the CPU.
        cameras: the views to score and to refit by; not those that the result is judged by.
        share: 0 to 1. 1 returns the scene itself; less keeps at most that share, and misses it by less than one band.

    Returns:
        a scene whose dropped coefficients are exactly 0; bands that no Gaussian keeps are cut off.

    Raises:
        ValueError: `share` is out of range, or there is no camera.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be 0 to 1, got {share}")
    if share == 1 or not scene.sh_degree or not len(scene):
        return scene
    weights = _squared_weights(scene, cameras)
    degrees = _affordable(_errors(scene, cameras, weights), share)
    return _dropped(scene, cameras, weights, degrees)


def reduced_degree(
    scene: SplatScene, cameras: Cameras, images: Float[Tensor, "C H W 3"], tolerance: float
) -> SplatScene:
    """The scene at the lowest degree that looks as much like `images` as all of it does, within `tolerance`.

    Args:
        scene: N Gaussians on the CPU.
        cameras: C views to refit and to measure by.
        images: (C, H, W, 3) what the scene stands for, on white: photographs, or renders of the scene that this one
            was made from. Against its own renders a scene can lose nothing.
        tolerance: dB that the mean PSNR may fall, over eight of the views if there are more.

    Returns:
        the scene itself where no lower degree will do; otherwise one whose Gaussians are refitted.

    Raises:
        ValueError: there is no camera, or `tolerance` is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 dB, got {tolerance}")
    if not scene.sh_degree:
        return scene
    weights = _squared_weights(scene, cameras)
    every = max(1, len(cameras) // _MEASURED_VIEWS)
    measured = cameras[::every], images[::every]
    least = _quality(scene, *measured) - tolerance
    for degree in range(scene.sh_degree):
        lower = _dropped(scene, cameras, weights, torch.full((len(scene),), degree)).with_sh_degree(degree)
        if _quality(lower, *measured) >= least:
            return lower
    return scene


class HeldBands:
    """Keeps the bands that a scene has none of at 0, as a function that gradients do not pass there.

    Args:
        scene: N Gaussians; a band of one of them is held if all its coefficients are 0.
    """

    def __init__(self, scene: SplatScene) -> None:
        bands = [band.detach().ne(0).any(dim=2).any(dim=1) for band in _bands(scene.shN)]
        self.kept = _by_coefficient(bands).to(scene.shN.dtype)[:, :, None] if bands else None

    def __call__(self, scene: SplatScene) -> SplatScene:
        """The same scene with those bands at 0."""
        return scene if self.kept is None else scene.with_tensors(shN=scene.shN * self.kept)


def _bands(coefficients: Float[Tensor, "N K 3"]) -> list[Tensor]:
    """[(N, 3, 3), (N, 5, 3), ...]: the coefficients of each degree from 1 on."""
    degree = {k: degree for degree, k in SH_COEFFICIENTS.items()}[coefficients.shape[1]]
    return list(coefficients.split([2 * band + 1 for band in range(1, degree + 1)], dim=1)) if degree else []


def _by_coefficient(bands: list[Bool[Tensor, " N"]]) -> Bool[Tensor, "N K"]:
    """What is true of each band, for each of its coefficients."""
    return torch.cat([kept[:, None].expand(-1, 2 * band + 1) for band, kept in enumerate(bands, start=1)], dim=1)


def _squared_weights(scene: SplatScene, cameras: Cameras) -> Float[Tensor, "C N"]:
    """Sum over the pixels of each view of each Gaussian's squared blending weight."""
    if len(cameras) == 0:
        raise ValueError("at least one camera is needed to see what a band does")
    sums = torch.zeros(len(cameras), len(scene))
    gaussians, lens = scene_gaussians(scene), Lens(antialiased=scene.antialiased)
    for index, view in enumerate(scene_views(cameras)):
        _, tiles = project_view(gaussians, view, lens)
        entries = list_pixels(tiles, view.width, view.height, Lattice(1, 0), _WEIGHT_MIN)
        by_rank = np.bincount(entries.ranks, np.square(entries.weights), minlength=len(tiles.order))
        sums[index, torch.from_numpy(tiles.order).long()] = torch.from_numpy(by_rank).float()
    return sums


class _Chunk:
    """Some Gaussians in all views: basis values (n, C, K), coefficients (n, K, 3), weights in all (n,) and by view."""

    def __init__(self, scene: SplatScene, positions: Float[Tensor, "C 3"], weights: Tensor, index: Tensor) -> None:
        self.index = index
        self.coefficients = torch.cat([scene.sh0[index], scene.shN[index]], dim=1).detach().double()
        towards = scene.means[index].detach().double()[:, None] - positions.double()
        directions = torch.nn.functional.normalize(towards, dim=2).reshape(-1, 3).numpy()
        rest = torch.from_numpy(sh_basis(directions, scene.sh_degree)).reshape(
            len(index), len(positions), scene.shN.shape[1]
        )
        self.basis = torch.cat([torch.full_like(rest[:, :, :1], _SH0), rest], dim=2)
        seen = weights[:, index].T.double()
        self.totals = seen.sum(dim=1)
        self.shares = seen / self.totals.clamp_min(1e-30)[:, None]
        self.gram = self.basis.transpose(1, 2) @ (self.basis * self.shares[:, :, None])

    def fitted(self, degree: int) -> Float[Tensor, "n k 3"]:
        """The coefficients up to `degree` that stand in for all."""
        stay = (degree + 1) ** 2
        ridge = torch.eye(stay, dtype=torch.float64) * (_RIDGE / (4 * math.pi))
        moved = self.gram[:, :stay, stay:] @ self.coefficients[:, stay:]
        return self.coefficients[:, :stay] + torch.linalg.solve(self.gram[:, :stay, :stay] + ridge, moved)

    def error(self, degree: int) -> Float[Tensor, " n"]:
        """Sum over views of weight times squared distance of colours, which are clamped at black as they are drawn."""
        stay = (degree + 1) ** 2
        before = (0.5 + self.basis @ self.coefficients).clamp_min(0)
        after = (0.5 + self.basis[:, :, :stay] @ self.fitted(degree)).clamp_min(0)
        return self.totals * ((after - before).square().sum(dim=2) * self.shares).sum(dim=1)


def _chunks(scene: SplatScene, cameras: Cameras, weights: Tensor, index: Int64[Tensor, " M"]) -> Iterator[_Chunk]:
    for part in index.split(_CHUNK):
        yield _Chunk(scene, cameras.positions, weights, part)


def _errors(scene: SplatScene, cameras: Cameras, weights: Float[Tensor, "C N"]) -> Float[Tensor, "N degrees"]:
    errors = torch.zeros(len(scene), scene.sh_degree, dtype=torch.float64)
    if scene.sh_degree:
        for chunk in _chunks(scene, cameras, weights, torch.arange(len(scene))):
            errors[chunk.index] = torch.stack([chunk.error(degree) for degree in range(scene.sh_degree)], dim=1)
    return errors


def _affordable(errors: Float[Tensor, "N degrees"], share: float) -> Int64[Tensor, " N"]:
    """The degree that each Gaussian keeps."""
    count, highest = errors.shape
    scores = dict(zip(map(str, range(1, highest + 1)), _scores(errors), strict=True))
    groups = [
        UnitGroup(str(band), count, (), {"coefficients": torch.full((count,), 2.0 * band + 1)}, min_keep=0)
        for band in range(1, highest + 1)
    ]
    keep = allocate(scores, groups, Budget(share=share, cost="coefficients"))
    return torch.stack([keep[group.name] for group in groups]).sum(dim=0)


def _scores(errors: Float[Tensor, "N degrees"]) -> list[Float[Tensor, " N"]]:
    """Error that each band from 1 on saves a coefficient, made non-increasing in the band.

    Bands that are worth more together with the next than alone share their mean (isotonic regression, by its min-max
    formula), so that a band is never worth less than the one above it.
    """
    below = torch.cat([errors, torch.zeros_like(errors[:, :1])], dim=1)
    highest = errors.shape[1]

    def mean(first: int, last: int) -> Tensor:
        return (below[:, first - 1] - below[:, last]) / ((last + 1) ** 2 - first**2)

    scores = []
    for band in range(1, highest + 1):
        upper = [
            torch.stack([mean(first, last) for last in range(band, highest + 1)]).amax(dim=0)
            for first in range(1, band + 1)
        ]
        scores.append(torch.stack(upper).amin(dim=0))
    return scores


def _dropped(
    scene: SplatScene, cameras: Cameras, weights: Float[Tensor, "C N"], degrees: Int64[Tensor, " N"]
) -> SplatScene:
    """The scene with each Gaussian at its degree, refitted; bands that none keeps are cut off."""
    coefficients = torch.cat([scene.sh0, scene.shN], dim=1).detach().clone()
    for degree in range(scene.sh_degree):
        stay = (degree + 1) ** 2
        for chunk in _chunks(scene, cameras, weights, (degrees == degree).nonzero()[:, 0]):
            coefficients[chunk.index, :stay] = chunk.fitted(degree).float()
            coefficients[chunk.index, stay:] = 0
    lean = scene.with_tensors(sh0=coefficients[:, :1].contiguous(), shN=coefficients[:, 1:].contiguous())
    return lean.with_sh_degree(int(degrees.max()))


def _quality(scene: SplatScene, cameras: Cameras, images: Float[Tensor, "C H W 3"]) -> float:
    """Mean PSNR in dB."""
    drawn = render_each(scene, cameras)
    scores = [psnr(image[None], wanted[None]) for (image, _), wanted in zip(drawn, images, strict=True)]
    return float(torch.cat(scores).mean())
