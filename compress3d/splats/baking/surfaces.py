"""Surfaces with texture coordinates, on which Gaussians are baked: a sphere, or a mesh with its UV.

Coordinates (u, v) are in [0, 1]: u runs along a map's columns, v along its rows, from the top. All in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from compress3d.splats.scene import SplatScene
from compress3d.splats.views import scene_shape

_CANDIDATES = 16
"""Faces that are looked at for each point. What they miss costs precision nowhere: offsets are of all three axes."""


class Surface(Protocol):
    """What baking asks of a surface."""

    @property
    def wraps(self) -> bool:
        """Whether u = 0 and u = 1 are the same line."""
        ...

    def uvs(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 2"]:
        """Coordinates of the place that each point, in world units, belongs to."""
        ...

    def frames(self, uvs: Float[Tensor, "N 2"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"]]:
        """The place at each coordinate, and rows of unit vectors there: along u, across it, and out of the surface."""
        ...


@dataclass(frozen=True, slots=True)
class Sphere:
    """A sphere that rays from its middle map scenes to, as UVGS does (arXiv 2502.01846, section 3.2).

    u is the azimuth around the y axis, v the angle from -y, which is up in the frame of a PLY.

    Args:
        center: x, y, z in world units.
        radius: in world units, positive.
    """

    center: tuple[float, float, float]
    radius: float

    def __post_init__(self) -> None:
        if not (self.radius > 0 and all(map(math.isfinite, (*self.center, self.radius)))):
            raise ValueError(f"a sphere has a finite centre and a radius above 0, got {self.center}, {self.radius}")

    @classmethod
    def around(cls, scene: SplatScene) -> Self:
        """The sphere at the scene's middle that half of what is visible lies within."""
        shape = scene_shape(scene)
        x, y, z = map(float, shape.middle)
        return cls((x, y, z), max(shape.median_radius, 1e-6))

    @property
    def wraps(self) -> bool:
        return True

    def uvs(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 2"]:
        x, y, z = (points.double() - torch.tensor(self.center, dtype=torch.float64)).unbind(dim=1)
        polar = torch.atan2(torch.hypot(x, z), -y)
        return torch.stack([torch.atan2(z, x) / math.tau + 0.5, polar / math.pi], dim=1)

    def frames(self, uvs: Float[Tensor, "N 2"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"]]:
        azimuth, polar = math.tau * (uvs[:, 0].double() - 0.5), math.pi * uvs[:, 1].double()
        east, around = torch.cos(azimuth), torch.sin(azimuth)
        down, across = torch.cos(polar), torch.sin(polar)
        rows = [[-around, torch.zeros_like(east), east], [down * east, across, down * around]]
        rows.append([across * east, -down, across * around])
        axes = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
        return torch.tensor(self.center, dtype=torch.float64) + self.radius * axes[:, 2], axes


@dataclass(frozen=True, slots=True, eq=False)
class MeshSurface:
    """A mesh with its texture coordinates, such as the head model whose UV FATE bakes on.

    A point belongs to the nearest of the faces whose middles are nearest to it.

    Args:
        vertices: (V, 3) in world units.
        faces: (F, 3) indices of vertices.
        face_uvs: (F, 3, 2) coordinates of each face's corners, so that seams need no second vertices.

    Raises:
        ValueError: shapes or indices do not fit, a number is not finite, coordinates lie outside [0, 1], or a face has
            no area, in space or in UV.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    face_uvs: Float[Tensor, "F 3 2"]

    def __post_init__(self) -> None:
        count = len(self.faces)
        shapes = [tuple(tensor.shape) for tensor in (self.faces, self.face_uvs)]
        if not count or shapes != [(count, 3), (count, 3, 2)] or self.vertices.shape[1:] != (3,):
            raise ValueError(
                f"vertices (V, 3), faces (F, 3) and face_uvs (F, 3, 2) are needed, got faces, uvs {shapes}"
            )
        if not 0 <= int(self.faces.min()) <= int(self.faces.max()) < len(self.vertices):
            raise ValueError(f"faces name vertices that are not there: there are {len(self.vertices)}")
        if not (torch.isfinite(self.vertices).all() and ((self.face_uvs >= 0) & (self.face_uvs <= 1)).all()):
            raise ValueError("vertices must be finite, and face_uvs within [0, 1]")
        flat = int((_double_areas(self._corners) <= 0).sum() + (_double_areas(self.face_uvs.double()) <= 0).sum())
        if flat:
            raise ValueError(f"{flat} faces have no area, in space or in UV; leave them out")

    @property
    def wraps(self) -> bool:
        return False

    @property
    def _corners(self) -> Float[Tensor, "F 3 3"]:
        return self.vertices.double()[self.faces]

    def uvs(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 2"]:
        face, weights = _located(points.double(), self._corners)
        return (weights[:, :, None] * self.face_uvs.double()[face]).sum(dim=1)

    def frames(self, uvs: Float[Tensor, "N 2"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"]]:
        face, weights = _located(uvs.double(), self.face_uvs.double())
        corners, flat = self._corners[face], self.face_uvs.double()[face]
        first, second = (corners[:, 1:] - corners[:, :1]).unbind(dim=1)
        (_, v1), (_, v2) = ((flat[:, i] - flat[:, 0]).unbind(dim=1) for i in (1, 2))
        # Along u, v stays: the combination of two edges whose v cancels, turned the way in which u grows.
        along = v2[:, None] * first - v1[:, None] * second
        along = along * torch.sign(_signed_double_areas(flat))[:, None]
        out = torch.linalg.cross(first, second)
        along, out = torch.nn.functional.normalize(along), torch.nn.functional.normalize(out)
        return (weights[:, :, None] * corners).sum(dim=1), torch.stack([along, torch.linalg.cross(out, along), out], 1)


def _located(points: Float[Tensor, "N D"], corners: Float[Tensor, "F 3 D"]) -> tuple[Tensor, Tensor]:
    """(N,) face whose clamped projection is nearest, and (N, 3) weights of its corners there, which sum to one."""
    count = min(_CANDIDATES, len(corners))
    faces = torch.from_numpy(cKDTree(corners.mean(dim=1).numpy()).query(points.numpy(), k=[*range(1, count + 1)])[1])
    origin = corners[:, 0][faces]
    first, second = (corners[:, i][faces] - origin for i in (1, 2))
    toward = points[:, None] - origin
    a, b, c = (first * first).sum(-1), (first * second).sum(-1), (second * second).sum(-1)
    d, e = (toward * first).sum(-1), (toward * second).sum(-1)
    one, two = (c * d - b * e) / (a * c - b * b), (a * e - b * d) / (a * c - b * b)
    weights = torch.stack([1 - one - two, one, two], dim=-1).clamp_min(0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    missed = toward - weights[..., 1:2] * first - weights[..., 2:] * second
    best = (missed * missed).sum(-1).argmin(dim=1)
    rows = torch.arange(len(points))
    return faces[rows, best], weights[rows, best]


def _double_areas(corners: Float[Tensor, "F 3 D"]) -> Float[Tensor, " F"]:
    """Twice the area of each triangle, by the Gram determinant."""
    first, second = (corners[:, 1:] - corners[:, :1]).unbind(dim=1)
    squares = (first * first).sum(1) * (second * second).sum(1) - (first * second).sum(1) ** 2
    return squares.clamp_min(0).sqrt()


def _signed_double_areas(corners: Float[Tensor, "F 3 2"]) -> Float[Tensor, " F"]:
    (u1, v1), (u2, v2) = ((corners[:, i] - corners[:, 0]).unbind(dim=1) for i in (1, 2))
    return u1 * v2 - u2 * v1
