"""The same scene in another coordinate frame: axes renamed by letters, or rotated by any matrix."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from compress3d.splats.scene import SplatScene

PLY_AXES = "RDF"
"""Axes of a SplatScene: x right, y down, z front (forward)."""

_DIRECTIONS = {
    "R": (1.0, 0.0, 0.0),
    "L": (-1.0, 0.0, 0.0),
    "D": (0.0, 1.0, 0.0),
    "U": (0.0, -1.0, 0.0),
    "F": (0.0, 0.0, 1.0),
    "B": (0.0, 0.0, -1.0),
}
"""What each letter points at, in the axes of a SplatScene."""


def reframe(scene: SplatScene, from_axes: str, to_axes: str) -> SplatScene:
    """The scene with its coordinates renamed from one set of axes to another.

    Args:
        scene: coordinates in `from_axes`.
        from_axes: where x, y and z point: three of R|L, D|U, F|B, such as "RUB" (x right, y up, z back).
        to_axes: the same for the result.

    Raises:
        ValueError: three letters that do not span space.
    """
    if from_axes == to_axes:
        return scene
    return transformed(scene, _columns(to_axes).T @ _columns(from_axes))


def transformed(scene: SplatScene, matrix: NDArray[np.float64]) -> SplatScene:
    """The scene under an orthogonal matrix: means, orientations and spherical harmonics turn or mirror together.

    A mirroring matrix keeps every Gaussian's covariance a valid one, because a Gaussian is its own point reflection.

    Args:
        scene: N Gaussians.
        matrix: (3, 3) orthogonal, applied to column vectors.
    """
    turn = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
    shN = scene.shN
    if shN.shape[1]:
        # A row of the harmonics' matrix makes one new coefficient out of the old ones.
        harmonics = torch.from_numpy(sh_rotation(matrix, scene.sh_degree).astype(np.float32))
        shN = torch.einsum("ij,njc->nic", harmonics, shN).contiguous()
    return scene.with_tensors(means=scene.means @ turn.T, quats=_turn_quats(scene.quats, matrix), shN=shN)


def sh_rotation(matrix: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """The matrix that carries real spherical-harmonic coefficients of degree 1..`degree` along with `matrix`.

    The rotated function at d is the old one at matrix^T d; a least-squares fit over directions that determine the
    coefficients gives the exact matrix, because each degree is closed under rotation and reflection.

    Args:
        matrix: (3, 3) orthogonal.
        degree: 1 to 3.

    Returns:
        (K, K) float64, K in {3, 8, 15}.
    """
    angle = np.arange(64) * (np.pi * (3 - np.sqrt(5)))
    z = 1 - (2 * np.arange(64) + 1) / 64
    radius = np.sqrt(1 - z * z)
    directions = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)
    rotation = np.linalg.lstsq(sh_basis(directions, degree), sh_basis(directions @ matrix, degree), rcond=None)[0]
    # Axis flips must stay exact sign changes; anything else loses nothing at the twelfth digit.
    return np.round(rotation, 12)


def sh_basis(directions: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Real spherical harmonics above degree 0 with the signs of 3D Gaussian splatting (KHR_gaussian_splatting, app. A).

    Args:
        directions: (D, 3) unit vectors.
        degree: 1 to 3.

    Returns:
        (D, K), K in {3, 8, 15}: degree by degree, order m from -l to l.
    """
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    columns = [np.sqrt(3 / (4 * np.pi)) * value for value in (-y, z, -x)]
    if degree > 1:
        a, b = np.sqrt(15 / (4 * np.pi)), np.sqrt(5 / (16 * np.pi))
        columns += [a * x * y, -a * y * z, b * (2 * zz - xx - yy), -a * x * z, a / 2 * (xx - yy)]
    if degree > 2:
        a, b = np.sqrt(35 / (32 * np.pi)), np.sqrt(105 / (16 * np.pi))
        c, d = np.sqrt(21 / (32 * np.pi)), np.sqrt(7 / (16 * np.pi))
        columns += [-a * y * (3 * xx - yy), 2 * b * x * y * z, -c * y * (4 * zz - xx - yy)]
        columns += [d * z * (2 * zz - 3 * xx - 3 * yy), -c * x * (4 * zz - xx - yy)]
        columns += [b * z * (xx - yy), -a * x * (xx - 3 * yy)]
    return np.stack(columns, axis=1)


def _columns(axes: str) -> NDArray[np.float64]:
    matrix = np.array([_DIRECTIONS.get(letter, (0.0, 0.0, 0.0)) for letter in axes]).T
    if matrix.shape != (3, 3) or abs(np.linalg.det(matrix)) != 1:
        raise ValueError(f"axes must be one each of R|L, D|U and F|B, such as {PLY_AXES!r}, got {axes!r}")
    return matrix


def _turn_quats(quats: Float[Tensor, "N 4"], matrix: NDArray[np.float64]) -> Float[Tensor, "N 4"]:
    if np.count_nonzero(matrix) == 3 and np.all(np.diag(matrix)):
        # Conjugating by axis flips only changes signs, so that flipping twice gives the same bits back.
        a, b, c = np.diag(matrix)
        return quats * torch.tensor([1.0, b * c, a * c, a * b], dtype=torch.float32)
    from scipy.spatial.transform import Rotation

    proper = matrix * np.sign(np.linalg.det(matrix))
    x, y, z, w = Rotation.from_matrix(proper).as_quat()
    left = torch.tensor([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]], dtype=torch.float32)
    return quats @ left.T
