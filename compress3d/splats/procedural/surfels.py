"""Surfels: flat Gaussians with a material, before light turns them into a splat scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float

from compress3d.splats.scene import SplatScene

SH_C0 = 0.28209479177387814
FRAME = np.array([1.0, -1.0, -1.0], np.float32)
"""From the y-up frame that scenes are modelled in to the y-down frame of a PLY: half a turn about x."""


@dataclass(frozen=True, slots=True, eq=False)
class Surfels:
    """N surface elements in a y-up frame.

    Args:
        positions: (N, 3) centres.
        tangents: (N, 3) unit directions of the first axis.
        normals: (N, 3) unit directions of the third axis, perpendicular to the tangents.
        sizes: (N, 3) standard deviations along tangent, bitangent and normal.
        colours: (N, 3) linear albedo in [0, 1].
        opacities: (N,) peak opacity in (0, 1).
        gloss: (N,) strength of the mirror-like lobe of a glaze.
        sheen: (N,) strength of the lobe that runs along a fibre (the tangent).
        fuzz: (N,) brightening at grazing views.
        translucency: (N,) share of light from behind that shines through.
    """

    positions: Float[np.ndarray, "N 3"]
    tangents: Float[np.ndarray, "N 3"]
    normals: Float[np.ndarray, "N 3"]
    sizes: Float[np.ndarray, "N 3"]
    colours: Float[np.ndarray, "N 3"]
    opacities: Float[np.ndarray, " N"]
    gloss: Float[np.ndarray, " N"]
    sheen: Float[np.ndarray, " N"]
    fuzz: Float[np.ndarray, " N"]
    translucency: Float[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def of(
        cls,
        positions: np.ndarray,
        tangents: np.ndarray,
        normals: np.ndarray,
        sizes: np.ndarray,
        colours: np.ndarray,
        *,
        opacities: np.ndarray | float = 0.95,
        gloss: np.ndarray | float = 0.0,
        sheen: np.ndarray | float = 0.0,
        fuzz: np.ndarray | float = 0.0,
        translucency: np.ndarray | float = 0.0,
    ) -> Self:
        """Surfels from arrays or constants; normals and tangents are made unit and perpendicular here."""
        count = len(positions)
        normals = unit(normals)
        tangents = unit(tangents - normals * (tangents * normals).sum(1, keepdims=True))

        def spread(values: np.ndarray | float, *shape: int) -> np.ndarray:
            return np.array(np.broadcast_to(np.asarray(values, np.float32), (count, *shape)))

        return cls(
            spread(positions, 3),
            spread(tangents, 3),
            spread(normals, 3),
            spread(sizes, 3),
            spread(colours, 3),
            spread(opacities),
            spread(gloss),
            spread(sheen),
            spread(fuzz),
            spread(translucency),
        )

    @classmethod
    def join(cls, parts: Sequence[Surfels]) -> Self:
        """All parts one after another."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def select(self, index: np.ndarray) -> Self:
        """The surfels at `index`, in that order."""
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    def with_arrays(self, **arrays: np.ndarray) -> Self:
        """Surfels with some arrays replaced (cast to float32)."""
        cast: dict[str, Any] = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        return replace(self, **cast)

    def matte(self) -> Self:
        """The same without any view-dependent lobe."""
        return self.with_arrays(**{name: np.zeros(len(self)) for name in ("gloss", "sheen", "fuzz", "translucency")})


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) at length 1; zero vectors stay near zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def any_tangents(normals: np.ndarray) -> np.ndarray:
    """A unit vector perpendicular to each unit normal (N, 3) (Duff et al., "Building an orthonormal basis", 2017)."""
    x, y, z = normals.T
    sign = np.where(z < 0, -1.0, 1.0)
    a = -1.0 / (sign + z)
    return np.stack([1 + sign * x * x * a, sign * x * y * a, -sign * x], axis=1)


def round_surfels(positions: np.ndarray, sizes: np.ndarray, colours: np.ndarray, rng: np.random.Generator) -> Surfels:
    """Thick Gaussians without a surface: random directions, medium opacities.

    Args:
        positions: (N, 3).
        sizes: (N, 3) standard deviations.
        colours: (N, 3) or (3,) linear albedo.
        rng: source of directions and opacities.
    """
    normals = unit(rng.normal(size=positions.shape))
    opacities = rng.beta(3, 2, len(positions))
    return Surfels.of(positions, any_tangents(normals), normals, sizes, colours, opacities=opacities)


def quaternions(rotations: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 4"]:
    """Unit quaternions (w, x, y, z) of rotation matrices: the largest of four candidates (Shepperd, 1978)."""
    m = rotations
    t = np.stack(
        [
            m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2],
            m[:, 0, 0] - m[:, 1, 1] - m[:, 2, 2],
            m[:, 1, 1] - m[:, 0, 0] - m[:, 2, 2],
            m[:, 2, 2] - m[:, 0, 0] - m[:, 1, 1],
        ],
        axis=1,
    )
    wx, wy, wz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    rows = np.stack(
        [
            np.stack([1 + t[:, 0], wx, wy, wz], axis=1),
            np.stack([wx, 1 + t[:, 1], xy, xz], axis=1),
            np.stack([wy, xy, 1 + t[:, 2], yz], axis=1),
            np.stack([wz, xz, yz, 1 + t[:, 3]], axis=1),
        ],
        axis=1,
    )
    quats = rows[np.arange(len(m)), t.argmax(1)]
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


def to_scene(surfels: Surfels, sh: Float[np.ndarray, "N 16 3"], centre: np.ndarray) -> SplatScene:
    """A degree-3 scene in the y-down frame of a PLY, with `centre` (3,) (y-up) moved to the origin.

    Args:
        surfels: N surfels.
        sh: (N, 16, 3) spherical-harmonic coefficients in the y-down frame, degree 0 first.
        centre: (3,) the point that becomes the origin.
    """
    tangents, normals = surfels.tangents * FRAME, surfels.normals * FRAME
    axes = np.stack([tangents, np.cross(normals, tangents), normals], axis=2)
    opacities = np.clip(surfels.opacities.astype(np.float64), 1e-4, 1 - 1e-4)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

    return SplatScene(
        means=tensor((surfels.positions - centre) * FRAME),
        quats=tensor(quaternions(axes)),
        scales=tensor(np.log(surfels.sizes)),
        opacities=tensor(np.log(opacities / (1 - opacities))),
        sh0=tensor(sh[:, :1]),
        shN=tensor(sh[:, 1:]),
    )
