"""Baked light: a density grid made of the surfels themselves, marched towards the sun and the sky."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numba import njit

from compress3d.splats.procedural.surfels import Surfels, any_tangents, unit

SUN = unit(np.array([0.55, 0.78, 0.42]))
"""Direction to the sun (y-up)."""
SUN_COLOUR = np.array([2.45, 2.25, 1.95])
SKY_COLOUR = np.array([0.78, 0.86, 0.98])
GROUND_COLOUR = np.array([0.34, 0.32, 0.30])
EXPOSURE = 1.25


@dataclass(frozen=True, slots=True, eq=False)
class DensityGrid:
    """How much a short ray is dimmed in each voxel.

    Args:
        extinction: (X, Y, Z) per unit of length.
        corner: (3,) position of the corner of voxel 0.
        voxel: side of a voxel.
    """

    extinction: Float[np.ndarray, "X Y Z"]
    corner: Float[np.ndarray, " 3"]
    voxel: float

    @classmethod
    def of(cls, surfels: Surfels, voxel: float) -> DensityGrid:
        """The grid of a scene: randomly turned area A in volume V dims light by A / 2 a unit of length."""
        corner = surfels.positions.min(0).astype(np.float64) - 2 * voxel
        cells = ((surfels.positions - corner) / voxel).astype(np.int64)
        shape = tuple(int(n) for n in cells.max(0) + 3)
        area = 2 * np.pi * np.sort(surfels.sizes, axis=1)[:, 1:].prod(1) * surfels.opacities
        total = np.bincount(np.ravel_multi_index(tuple(cells.T), shape), weights=area, minlength=int(np.prod(shape)))
        return cls((total / voxel**3 / 2).reshape(shape), corner, voxel)

    def transmittance(
        self, positions: np.ndarray, direction: np.ndarray, distance: float, start: float = 0.5
    ) -> Float[np.ndarray, " N"]:
        """Share of light in [0, 1] that comes from `direction` (3,), over `distance`, to each of `positions` (N, 3).

        The first `start` voxels are left out, so that a surface does not shade itself.
        """
        places = (positions - self.corner) / self.voxel - 0.5
        steps = int(np.ceil(distance / self.voxel))
        depth = _march(
            self.extinction, places.astype(np.float32), direction.astype(np.float64), start, steps, 8 / self.voxel
        )
        return np.exp(-depth * self.voxel)


@njit(cache=True)
def _march(
    grid: np.ndarray, places: np.ndarray, direction: np.ndarray, start: float, steps: int, limit: float
) -> np.ndarray:
    out = np.zeros(len(places), np.float32)
    for i in range(len(places)):
        total = 0.0
        for step in range(steps):
            far = start + step
            x, y, z = (
                places[i, 0] + far * direction[0],
                places[i, 1] + far * direction[1],
                places[i, 2] + far * direction[2],
            )
            ix, iy, iz = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
            if ix < 0 or iy < 0 or iz < 0:
                break
            if ix + 1 >= grid.shape[0] or iy + 1 >= grid.shape[1] or iz + 1 >= grid.shape[2]:
                break
            fx, fy, fz = x - ix, y - iy, z - iz
            for corner in range(8):
                dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
                weight = (fx if dx else 1 - fx) * (fy if dy else 1 - fy) * (fz if dz else 1 - fz)
                total += weight * grid[ix + dx, iy + dy, iz + dz]
            if total > limit:
                break
        out[i] = total
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Light:
    """What reaches each of N surfels.

    Args:
        sun: (N,) share of the sun that is not in shadow.
        sky: (N,) share of the hemisphere above the surface that is open nearby (ambient occlusion).
        reflected: (N, 3) radiance that leaves the surface the same in all directions, in display units [0, 1].
    """

    sun: Float[np.ndarray, " N"]
    sky: Float[np.ndarray, " N"]
    reflected: Float[np.ndarray, "N 3"]


def illuminate(surfels: Surfels, occluders: Surfels, voxel: float = 0.009) -> Light:
    """Sun with soft shadows, sky with ambient occlusion, and light back from the white ground.

    Args:
        surfels: N surfels to light.
        occluders: surfels that cast the shadows.
        voxel: side of the voxels of the density grid.
    """
    grid = DensityGrid.of(occluders, voxel)
    normals = surfels.normals.astype(np.float64)
    raised = surfels.positions + normals * (1.7 * voxel)
    # Averaged over the disc of a wide lamp, so that the edges of shadows are soft.
    sun = np.mean([grid.transmittance(raised, direction, 1.2) for direction in _around(SUN, 0.2, 7)], axis=0)

    open_sky, weights = np.zeros(len(surfels)), np.zeros(len(surfels))
    for direction in _sphere(14):
        weight = np.maximum(normals @ direction, 0.0) * (0.35 + 0.65 * (direction[1] > -0.2))
        seen = np.flatnonzero(weight > 0.02)
        open_sky[seen] += weight[seen] * grid.transmittance(raised[seen], direction, 0.16)
        weights += weight
    sky = open_sky / np.maximum(weights, 1e-6)

    facing = normals @ SUN
    through = surfels.translucency * np.maximum(-facing, 0)
    direct = np.where(facing > 0, facing, 0) + through
    upward = 0.5 + 0.5 * normals[:, 1]
    received = (
        (direct * sun)[:, None] * SUN_COLOUR
        + (sky * upward)[:, None] * SKY_COLOUR
        + (sky * (1 - upward))[:, None] * GROUND_COLOUR
    )
    return Light(sun, sky, display(surfels.colours * received))


def display(radiance: np.ndarray) -> np.ndarray:
    """Linear light to display values in [0, 1): an exponential shoulder, then the sRGB power of about 1 / 2.2."""
    return (1 - np.exp(-EXPOSURE * np.maximum(radiance, 0))) ** (1 / 2.2)


def _around(direction: np.ndarray, radius: float, count: int) -> np.ndarray:
    """`count` directions on a disc of `radius` radians about a unit direction."""
    i = np.arange(count) + 0.5
    reach, turn = radius * np.sqrt(i / count), np.pi * (1 + 5**0.5) * i
    side = any_tangents(direction[None])[0]
    offsets = (reach * np.cos(turn))[:, None] * side + (reach * np.sin(turn))[:, None] * np.cross(direction, side)
    return unit(direction + offsets)


def _sphere(count: int) -> np.ndarray:
    """`count` even directions (Fibonacci lattice)."""
    i = np.arange(count) + 0.5
    height, turn = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    flat = np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(turn), height, flat * np.sin(turn)], axis=1)
