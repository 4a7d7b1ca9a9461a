"""View-dependent light as spherical harmonics: lobes about an axis, projected by weighted least squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from numba import njit

from compress3d.splats.procedural.light import SUN, Light
from compress3d.splats.procedural.surfels import FRAME, SH_C0, Surfels, unit
from compress3d.splats.rasterize.harmonics import fill_basis

Lobe = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(A, 1, 3) unit axes, (1, D, 3) unit directions to the eye -> (A, D) added brightness."""

STRIPS = np.array([[-0.62, 0.78], [0.90, -0.44]])
"""Horizontal directions (x, z) to two tall studio lights that a glaze mirrors."""
SIDE = 41
"""Nodes of the octahedral table along a side: odd, so that the creases of the map fall on nodes."""


def sh_basis(directions: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 16"]:
    """Real spherical harmonics up to degree 3, as the rasteriser evaluates them.

    Args:
        directions: unit vectors from the eye to the Gaussian, in the frame of the PLY.
    """
    return _basis_rows(np.ascontiguousarray(directions, np.float64))


@njit(cache=True)
def _basis_rows(directions: np.ndarray) -> np.ndarray:
    rows = np.empty((len(directions), 16))
    for i in range(len(directions)):
        fill_basis(rows[i], directions[i, 0], directions[i, 1], directions[i, 2], 3)
    return rows


def glaze(normal: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """Reflections of the sun and two tall studio lights, stronger at grazing views (Schlick, 1994)."""
    facing = (normal * eye).sum(-1)
    fresnel = 0.30 + 0.70 * (1 - np.maximum(facing, 0)) ** 5
    mirrored = 2 * facing[..., None] * normal - eye
    sun = np.maximum(mirrored @ SUN, 0) ** 9
    level = np.hypot(mirrored[..., 0], mirrored[..., 2]) + 1e-9
    tall = np.exp(-((np.abs(mirrored[..., 1]) / 0.8) ** 4))
    strips = [np.exp(((mirrored[..., ::2] @ side) / level - 1) / 0.07) * tall for side in STRIPS]
    return np.where(facing > 0, fresnel * (3.0 * sun + 2.2 * strips[0] + 1.4 * strips[1]), 0)


def fibre(tangent: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """Highlight across a fibre (Kajiya and Kay, "Rendering fur with three dimensional textures", 1989)."""
    halfway = unit(SUN + eye)
    along = (tangent * halfway).sum(-1)
    return np.maximum(1 - along**2, 0) ** 10 * np.maximum((SUN * eye).sum(-1) * 0.5 + 0.5, 0)


def fuzz(normal: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """Bright rim of a surface with fine hair: 1 minus the cosine, cubed."""
    cosine = (normal * eye).sum(-1)
    return np.where(cosine > -0.2, (1 - np.maximum(cosine, 0)) ** 3, 0)


@dataclass(frozen=True, slots=True, eq=False)
class LobeTable:
    """Coefficients of one lobe for axes all over the sphere.

    Args:
        coefficients: (SIDE, SIDE, 16) on the octahedral map of the axis (Cigolla et al., "A survey of efficient
            representations for independent unit vectors", 2014).
    """

    coefficients: Float[np.ndarray, "S S 16"]

    @classmethod
    def fit(cls, lobe: Lobe, one_sided: bool, directions: int = 200) -> LobeTable:
        """Least squares over `directions` to the eye; a one-sided lobe only counts where its surface is seen."""
        i = np.arange(directions) + 0.5
        turn, height = np.pi * (1 + 5**0.5) * i, 1 - 2 * i / directions
        flat = np.sqrt(1 - height**2)
        eye = np.stack([flat * np.cos(turn), height, flat * np.sin(turn)], axis=1)
        axes = _octahedral_axes(SIDE)
        values = lobe(axes[:, None], eye[None])
        weights = np.maximum(axes @ eye.T, 0) + 0.04 if one_sided else np.ones_like(values)
        basis = sh_basis(-eye * FRAME)
        normal_matrix = np.einsum("ad,di,dj->aij", weights, basis, basis, optimize=True)
        right = np.einsum("ad,ad,di->ai", weights, values, basis, optimize=True)
        return cls(np.linalg.solve(normal_matrix, right[..., None])[..., 0].reshape(SIDE, SIDE, 16))

    def __call__(self, axes: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 16"]:
        """Coefficients at unit axes, bilinear between the cells of the table."""
        flat = axes[:, :2] / np.abs(axes).sum(1, keepdims=True)
        signs = np.where(flat >= 0, 1.0, -1.0)
        folded = np.where(axes[:, 2:] < 0, (1 - np.abs(flat[:, ::-1])) * signs, flat)
        place = np.clip((folded * 0.5 + 0.5) * (SIDE - 1), 0, SIDE - 1)
        low = np.minimum(place.astype(np.int64), SIDE - 2)
        wx, wy = (place - low).T[:, :, None].astype(np.float32)
        x, y = low.T
        table = self.coefficients.astype(np.float32)
        return (
            table[x, y] * ((1 - wx) * (1 - wy))
            + table[x + 1, y] * (wx * (1 - wy))
            + table[x, y + 1] * ((1 - wx) * wy)
            + table[x + 1, y + 1] * (wx * wy)
        )


def _octahedral_axes(side: int) -> np.ndarray:
    line = np.linspace(-1, 1, side)
    x, y = (g.ravel() for g in np.meshgrid(line, line, indexing="ij"))
    z = 1 - np.abs(x) - np.abs(y)
    sx, sy = np.where(x >= 0, 1.0, -1.0), np.where(y >= 0, 1.0, -1.0)
    below = z < 0
    return unit(
        np.stack([np.where(below, (1 - np.abs(y)) * sx, x), np.where(below, (1 - np.abs(x)) * sy, y), z], axis=1)
    )


@cache
def _tables() -> tuple[LobeTable, LobeTable, LobeTable]:
    return LobeTable.fit(glaze, True), LobeTable.fit(fibre, False), LobeTable.fit(fuzz, True)


def radiance(surfels: Surfels, light: Light, rng: np.random.Generator, noise: float = 0.012) -> np.ndarray:
    """(N, 16, 3) coefficients: reflected light in degree 0, plus lobes, plus the noise that training leaves.

    Args:
        surfels: N surfels.
        light: what reaches them.
        rng: source of the noise.
        noise: standard deviation of the noise in degree 1; degrees 2 and 3 have a half and a third of it.
    """
    glaze_table, fibre_table, fuzz_table = _tables()
    sh = np.zeros((len(surfels), 16, 3), np.float32)
    sh[:, 0] = (light.reflected - 0.5) / SH_C0
    lit = 0.25 * light.sky + 0.75 * light.sun
    # A highlight moves a display value towards white, so that it cannot pass it.
    room = (1.0 - light.reflected).astype(np.float32)
    leaf_colour = room * np.array([1.0, 1.0, 0.72], np.float32)
    moss_colour = room * np.array([0.75, 1.0, 0.45], np.float32)
    for strength, table, axes, colour in (
        (surfels.gloss * (0.3 + 0.7 * lit) * light.sky, glaze_table, surfels.normals, room),
        (surfels.sheen * lit, fibre_table, surfels.tangents, leaf_colour),
        (surfels.fuzz * light.sky, fuzz_table, surfels.normals, moss_colour),
    ):
        on = np.flatnonzero(strength > 1e-3)
        sh[on] += (table(axes[on]) * strength[on, None].astype(np.float32))[:, :, None] * colour[on, None, :]
    spread = np.repeat(np.array([0, 1, 1 / 2, 1 / 3], np.float32), [1, 3, 5, 7])[:, None] * noise
    shared = rng.standard_normal((len(surfels), 16, 1), dtype=np.float32)
    sh += spread * (0.8 * shared + 0.6 * rng.standard_normal(sh.shape, dtype=np.float32))
    return sh
