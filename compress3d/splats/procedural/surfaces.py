"""Points spread evenly over parametric surfaces, with tangents and normals by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from compress3d.splats.procedural.surfels import unit

Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(N,), (N,) parameters in [0, 1] -> (N, 3) positions; the normal is du x dv."""

STEP = 2e-4


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Points on a surface.

    Args:
        u, v: (N,) parameters.
        positions: (N, 3).
        tangents: (N, 3) unit directions of growing u.
        normals: (N, 3) unit.
        spacing: (N, 2) sides of the rectangle that each point stands for, along u and v, in scene units.
    """

    u: Float[np.ndarray, " N"]
    v: Float[np.ndarray, " N"]
    positions: Float[np.ndarray, "N 3"]
    tangents: Float[np.ndarray, "N 3"]
    normals: Float[np.ndarray, "N 3"]
    spacing: Float[np.ndarray, "N 2"]


def low_discrepancy(count: int, rng: np.random.Generator) -> Float[np.ndarray, "N 2"]:
    """A randomly shifted R2 sequence in the unit square (Roberts, 2018): even, with no two points close."""
    steps = np.array([0.7548776662466927, 0.5698402909980532])
    return (rng.random(2) + np.arange(count)[:, None] * steps) % 1.0


def derivatives(surface: Surface, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d/du and d/dv (N, 3) of a surface by central differences that stay inside [0, 1]."""
    u0, u1 = np.maximum(u - STEP, 0), np.minimum(u + STEP, 1)
    v0, v1 = np.maximum(v - STEP, 0), np.minimum(v + STEP, 1)
    du = (surface(u1, v) - surface(u0, v)) / (u1 - u0)[:, None]
    dv = (surface(u, v1) - surface(u, v0)) / (v1 - v0)[:, None]
    return du, dv


def sample(
    surface: Surface,
    count: int,
    rng: np.random.Generator,
    weight: Callable[[np.ndarray], np.ndarray] | None = None,
    resolution: tuple[int, int] = (192, 96),
) -> Samples:
    """`count` points whose density follows area times `weight`, and grows where the surface bends.

    Args:
        surface: the surface.
        count: number of points.
        rng: source of the shift of the sequence.
        weight: (N, 3) positions -> (N,) relative density; None: even.
        resolution: cells in u and v on which area, bend and weight are measured.
    """
    rows, columns = resolution
    u, v = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    grid_u, grid_v = (g.ravel() for g in np.meshgrid(u, v, indexing="ij"))
    du, dv = derivatives(surface, grid_u, grid_v)
    area = np.linalg.norm(np.cross(du, dv), axis=1) / (rows * columns) + 1e-300
    density = np.ones_like(area) if weight is None else np.maximum(weight(surface(grid_u, grid_v)), 1e-9)
    spacing = np.sqrt((area * density).sum() / count / density)
    bends = np.stack(_bends(du, dv, rows, columns), axis=1) * spacing[:, None]
    density = density * np.sqrt(1 + bends).clip(1, 3).prod(1) ** 2
    mass = (area * density).reshape(rows, columns)

    picks = low_discrepancy(count, rng)
    u, row = _invert(mass.sum(1)[None], np.zeros(count, np.int64), picks[:, 0])
    v, column = _invert(mass, row, picks[:, 1])
    cell = row * columns + column
    stretch = np.sqrt(np.sqrt((1 + bends[cell, 1]) / (1 + bends[cell, 0]))).clip(0.4, 2.5)
    side = np.sqrt(mass.sum() / count / density[cell])
    du, dv = derivatives(surface, u, v)
    sides = np.stack([side * stretch, side / stretch], axis=1)
    return Samples(u, v, surface(u, v), unit(du), unit(np.cross(du, dv)), sides)


def _bends(du: np.ndarray, dv: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Curvature (radians per unit of length) of each cell along u and along v, which closes on itself."""
    normals = unit(np.cross(du, dv)).reshape(rows, columns, 3)
    turn_u = np.linalg.norm(np.gradient(normals, axis=0), axis=2).ravel()
    turn_v = np.linalg.norm(np.roll(normals, -1, 1) - np.roll(normals, 1, 1), axis=2).ravel() / 2
    step_u, step_v = np.linalg.norm(du, axis=1) / rows, np.linalg.norm(dv, axis=1) / columns
    return turn_u / np.maximum(step_u, 1e-9), turn_v / np.maximum(step_v, 1e-9)


def _invert(mass: np.ndarray, row: np.ndarray, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of each row's cumulative mass at `picks` (N,): positions in [0, 1] and the cells they fall in."""
    cells = mass.shape[1]
    upper = np.cumsum(mass / mass.sum(1, keepdims=True), axis=1)
    # Adding the row number makes one sorted list of all rows, so that one search serves every point.
    cell = np.searchsorted((upper + np.arange(len(mass))[:, None]).ravel(), picks + row) - row * cells
    cell = np.clip(cell, 0, cells - 1)
    before = np.where(cell > 0, upper[row, np.maximum(cell - 1, 0)], 0.0)
    inside = (picks - before) / np.maximum(upper[row, cell] - before, 1e-12)
    return (cell + np.clip(inside, 0, 1)) / cells, cell


@dataclass(frozen=True, slots=True, eq=False)
class Turned:
    """A profile carried round a superellipse: pots, slabs, mounds. u runs along the profile, v round it.

    Args:
        half_width: half axis along x at profile radius 1.
        half_depth: half axis along z at profile radius 1.
        exponent: 2 is an ellipse; larger is nearer to a rectangle.
        profile: (P, 2) radius and height; one that runs from the middle below out, up and in again has its normals
            outside. No radius may be 0.
        centre: (3,) offset.
        roughness: height of the bumps that `relief` (N, 3) -> (N,) in [0, 1] adds along y.
        relief: None: none.
    """

    half_width: float
    half_depth: float
    exponent: float
    profile: Float[np.ndarray, "P 2"]
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    roughness: float = 0.0
    relief: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(self.profile, axis=0), axis=1))]
        radius = np.interp(u, length / length[-1], self.profile[:, 0])
        height = np.interp(u, length / length[-1], self.profile[:, 1])
        angle = 2 * np.pi * v
        cos, sin, p = np.cos(angle), np.sin(angle), self.exponent
        rim = (np.abs(cos / self.half_width) ** p + np.abs(sin / self.half_depth) ** p) ** (-1 / p)
        points = np.stack([radius * rim * cos, height, radius * rim * sin], axis=1) + np.asarray(self.centre)
        if self.relief is not None:
            points[:, 1] += self.roughness * self.relief(points)
        return points


def rounded(profile: np.ndarray, rounds: int = 3) -> np.ndarray:
    """A polyline (P, D) with its corners cut (Chaikin, 1974); the ends stay."""
    for _ in range(rounds):
        a, b = profile[:-1], profile[1:]
        cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], axis=1).reshape(-1, profile.shape[1])
        profile = np.concatenate([profile[:1], cut, profile[-1:]])
    return profile


def ellipsoids(
    centres: np.ndarray, half_axes: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`count` points over many axis-aligned ellipsoids.

    Args:
        centres: (E, 3).
        half_axes: (E, 3).

    Returns:
        which ellipsoid (N,), positions (N, 3), unit normals (N, 3), spacing (N,).
    """
    areas = half_axes.prod(1) ** (2 / 3) * 4 * np.pi
    which = np.searchsorted(np.cumsum(areas / areas.sum()), np.minimum(rng.random(count), 1 - 1e-9))
    directions = unit(rng.normal(size=(count, 3)))
    positions = centres[which] + directions * half_axes[which]
    return which, positions, unit(directions / half_axes[which]), np.full(count, np.sqrt(areas.sum() / count))
