"""Changing axes: what every viewer sees of a Gaussian turns along with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from compress3d.splats.formats.axes import reframe, sh_basis, transformed
from compress3d.splats.scene import SplatScene


def random_scene(count: int, degree: int, seed: int = 0) -> SplatScene:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    coefficients = (degree + 1) ** 2 - 1
    return SplatScene(
        normal(count, 3), normal(count, 4), normal(count, 3), normal(count), normal(count, 1, 3),
        normal(count, coefficients, 3) * 0.3,
    )  # fmt: skip


def directions(count: int = 50) -> NDArray[np.float64]:
    vectors = np.random.default_rng(1).normal(size=(count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def reference_basis(vectors: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Real harmonics out of scipy's complex ones, which carry the Condon-Shortley phase as 3DGS does."""
    theta, phi = np.arccos(vectors[:, 2]), np.arctan2(vectors[:, 1], vectors[:, 0])
    columns = []
    for l in range(1, degree + 1):  # noqa: E741
        for m in range(-l, l + 1):
            value = sph_harm_y(l, abs(m), theta, phi)
            columns.append(value.real if m == 0 else np.sqrt(2) * (value.imag if m < 0 else value.real))
    return np.stack(columns, axis=1)


def covariances(scene: SplatScene) -> NDArray[np.float64]:
    turns = Rotation.from_quat(scene.quats.double().numpy(), scalar_first=True).as_matrix()
    stretched = turns * np.exp(scene.scales.double().numpy())[:, None, :]
    return stretched @ stretched.transpose(0, 2, 1)


MATRICES = {
    "flip y and z": np.diag([1.0, -1.0, -1.0]),
    "mirror x": np.diag([-1.0, 1.0, 1.0]),
    "swap y and z": np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]),
    "quarter turn": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "any rotation": Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix(),
}


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_basis_is_that_of_scipy(degree: int) -> None:
    np.testing.assert_allclose(sh_basis(directions(), degree), reference_basis(directions(), degree), atol=1e-12)


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=list(MATRICES))
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_means_covariances_and_colours_turn_together(matrix: NDArray[np.float64], degree: int) -> None:
    scene = random_scene(7, degree)
    turned = transformed(scene, matrix)
    np.testing.assert_allclose(turned.means.numpy(), scene.means.numpy() @ matrix.T, atol=1e-5)
    np.testing.assert_allclose(covariances(turned), matrix @ covariances(scene) @ matrix.T, rtol=1e-4, atol=1e-4)
    if degree:
        before = np.einsum("dk,nkc->ndc", reference_basis(directions(), degree), scene.shN.numpy())
        after = np.einsum("dk,nkc->ndc", reference_basis(directions() @ matrix.T, degree), turned.shN.numpy())
        np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("axes", ["RUB", "LUF", "LUB", "RDF"])
def test_flipping_axes_twice_gives_the_same_bits(axes: str) -> None:
    scene = random_scene(9, 3)
    back = reframe(reframe(scene, "RDF", axes), axes, "RDF")
    for name, tensor in scene.tensors().items():
        assert torch.equal(back.tensors()[name], tensor), name


def test_letters_say_where_each_axis_points() -> None:
    scene = random_scene(3, 1)
    assert torch.equal(reframe(scene, "RDF", "RUB").means, scene.means * torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(reframe(scene, "RDF", "LFU").means, scene.means[:, [0, 2, 1]] * torch.tensor([-1.0, 1.0, -1.0]))


@pytest.mark.parametrize("axes", ["RU", "RUBB", "RLF", "xyz", ""])
def test_axes_that_do_not_span_space_are_refused(axes: str) -> None:
    with pytest.raises(ValueError, match="axes must be"):
        reframe(random_scene(1, 0), "RDF", axes)
