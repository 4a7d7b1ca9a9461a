"""The soft silhouette: its equation, its gradients, and what holds of every silhouette."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compress3d.mesh.kernels import STRIP, list_strips, reach_of
from compress3d.mesh.mesh import FACES, Mesh
from compress3d.mesh.shapes import icosphere
from compress3d.mesh.silhouette import coverage_in, project_faces, silhouettes, soft_silhouette, soft_silhouettes
from tests.compress3d.mesh.views import cameras_at, reference_coverage, reference_silhouette, ring_of_cameras


def few_faces() -> Mesh:
    generator = torch.Generator().manual_seed(3)
    vertices = torch.randn(9, 3, generator=generator, dtype=torch.float64) * 0.6
    return Mesh(vertices, torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 4, 8], [2, 3, 7]]))


@pytest.mark.parametrize("sigma", [0.05, 0.7, 12.0])
def test_kernels_agree_with_the_equation_in_plain_torch(sigma: float) -> None:
    mesh, cameras = few_faces(), cameras_at([(0.5, -3.0, 1.0)], size=40)
    triangles = project_faces(mesh.vertices, mesh.faces, cameras).reshape(-1, 3, 2)
    strengths = torch.tensor([1.0, 0.4, 0.0, 0.9, 0.7], dtype=torch.float64)
    with mesh.masked({FACES: strengths}):
        ours = soft_silhouette(mesh, cameras, sigma)
    torch.testing.assert_close(ours, reference_silhouette(triangles, strengths, sigma, 40, 40), rtol=1e-9, atol=1e-12)
    values = torch.rand(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coverage = reference_coverage(triangles, sigma, 40, 40)
    inside, footprint = coverage_in(mesh, cameras, values, sigma)
    torch.testing.assert_close(inside, (coverage * values).sum(dim=(1, 2)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(footprint, coverage.sum(dim=(1, 2)), rtol=1e-9, atol=1e-12)


def test_gradients_to_vertices_and_strengths_agree_with_central_differences() -> None:
    mesh, cameras = few_faces(), cameras_at([(0.5, -3.0, 1.0), (2.0, 2.0, 1.0)], size=20)
    # A wide sigma: what is cut off at LEAST would otherwise step in and out between the two sides.
    sigma, weights = 40.0, torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(vertices: Tensor, strengths: Tensor) -> Tensor:
        moved = mesh.with_vertices(vertices)
        with moved.masked({FACES: strengths}):
            return (soft_silhouettes(moved, cameras, sigma) * weights).sum()

    vertices = mesh.vertices.clone().requires_grad_()
    strengths = torch.linspace(0.2, 1.0, 5, dtype=torch.float64).requires_grad_()
    for given, found in zip(
        (vertices, strengths), torch.autograd.grad(loss(vertices, strengths), (vertices, strengths)), strict=True
    ):
        numeric = torch.zeros_like(given)
        for index in range(given.numel()):
            step = torch.zeros(given.numel(), dtype=torch.float64)
            step[index] = 1e-6
            ends = [
                loss(
                    *(
                        other.detach() + sign * step.view_as(other) if other is given else other.detach()
                        for other in (vertices, strengths)
                    )
                )
                for sign in (1, -1)
            ]
            numeric.view(-1)[index] = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(found, numeric, rtol=1e-5, atol=1e-6)


def test_a_pixel_that_one_face_covers_wholly_still_tells_what_that_face_is_worth() -> None:
    # Sharp and full: the factor is exactly 0, and dividing by it would lose the gradient.
    mesh, cameras = icosphere(1), cameras_at([(0.0, -4.0, 0.0)], size=24)
    front = mesh.cut({FACES: mesh.vertices[mesh.faces].mean(dim=1)[:, 1] < -0.3})
    strengths = torch.ones(len(front), requires_grad=True)
    with front.masked({FACES: strengths}):
        soft_silhouettes(front, cameras, 1e-4).sum().backward()
    _, footprint = coverage_in(front, cameras, torch.ones(24, 24), 1e-4)
    # Projected faces of one side hardly overlap: without a face, what it covers is lost.
    torch.testing.assert_close(strengths.grad, footprint.float(), rtol=0.1, atol=0.7)
    assert float(footprint.max()) > 10


def test_silhouettes_of_a_sphere_are_discs() -> None:
    mesh, cameras = icosphere(4), ring_of_cameras(3, size=64)
    drawn = silhouettes(mesh, cameras)
    radius = 1.4 * 64 / math.sqrt(4.0**2 - 1)
    area = drawn.sum(dim=(1, 2)) / (math.pi * radius**2)
    torch.testing.assert_close(area, torch.ones(len(cameras)), rtol=0.02, atol=0.0)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}


def test_coverage_is_half_on_an_outline_and_grows_with_every_face() -> None:
    camera = cameras_at([(0.0, 0.0, -4.0)], size=32)
    square = Mesh(
        torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]])
    )
    one = square.cut({FACES: torch.tensor([True, False])})
    both, single = soft_silhouettes(square, camera, 0.3), soft_silhouettes(one, camera, 0.3)
    assert bool((both >= single - 1e-6).all())
    # On the diagonal, the outline of both: 1 - (1 - 1/2)^2.
    on_diagonal = both[0].diagonal()[10:22], both[0].flip(1).diagonal()[10:22]
    assert any(torch.allclose(values, torch.full((12,), 0.75), atol=1e-3) for values in on_diagonal)


def test_what_is_behind_or_beside_the_camera_is_not_drawn_and_gets_no_gradient() -> None:
    camera = cameras_at([(0.0, -4.0, 0.0)])
    for offset in ((0.0, -8.0, 0.0), (40.0, 0.0, 0.0), (0.0, -4.5, 0.0)):
        mesh = icosphere(1)
        vertices = (mesh.vertices + torch.tensor(offset)).requires_grad_()
        drawn = soft_silhouettes(mesh.with_vertices(vertices), camera)
        drawn.sum().backward()
        gradient = vertices.grad
        assert gradient is not None and bool(torch.isfinite(gradient).all())
        if offset[1] != -4.5:
            assert float(drawn.detach().max()) == 0 and float(gradient.abs().max()) == 0


def test_a_hidden_degenerate_face_does_no_harm() -> None:
    mesh = icosphere(1)
    flat = Mesh(mesh.vertices, torch.cat([mesh.faces, torch.tensor([[0, 0, 1], [5, 5, 5]])]))
    vertices = flat.vertices.clone().requires_grad_()
    drawn = soft_silhouettes(flat.with_vertices(vertices), cameras_at([(0.0, -4.0, 0.0)]))
    drawn.sum().backward()
    assert bool(torch.isfinite(drawn).all()) and vertices.grad is not None and bool(torch.isfinite(vertices.grad).all())


def test_lists_of_strips_grow_with_the_rows_that_faces_reach_and_not_with_the_image() -> None:
    mesh, sigma = icosphere(4), 0.3
    entries = []
    for size in (256, 512):
        triangles = project_faces(mesh.vertices, mesh.faces, cameras_at([(0.0, -4.0, 0.0)], size)).numpy()
        heights = triangles[:, 1::2].max(axis=1) - triangles[:, 1::2].min(axis=1) + 2 * reach_of(sigma)
        starts, faces = list_strips(triangles, reach_of(sigma), size, size)
        assert starts[-1] == len(faces) <= (2 + heights / STRIP).sum()
        entries.append(len(faces))
    assert entries[1] < 2 * entries[0]


def test_a_sigma_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma must be above 0, got 0"):
        soft_silhouettes(icosphere(0), cameras_at([(0.0, -4.0, 0.0)]), 0)
