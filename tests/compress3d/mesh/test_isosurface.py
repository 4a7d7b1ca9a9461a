"""Surfaces of fields, visual hulls, and the measures that meshes are compared by."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from compress3d.captures import read_capture
from compress3d.mesh.compare import chamfer_distance, silhouette_iou, surface_points
from compress3d.mesh.connectivity import Connectivity
from compress3d.mesh.importance import Silhouettes
from compress3d.mesh.isosurface import isosurface, outwards, signed_distances, visual_hull
from compress3d.mesh.library import decimated
from compress3d.mesh.mesh import Mesh
from compress3d.mesh.shapes import icosphere, torus
from compress3d.mesh.silhouette import silhouettes
from tests.compress3d.mesh.views import ring_of_cameras

BOX = ((-1.5, -1.2, -1.4), (1.4, 1.6, 1.5))


@pytest.fixture(autouse=True)
def _needs_open3d() -> None:
    pytest.importorskip("open3d", reason="open3d is not installed", exc_type=ImportError)


def grid(shape: tuple[int, int, int]) -> torch.Tensor:
    axes = [torch.linspace(low, high, count) for low, high, count in zip(*BOX, shape, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def test_the_surface_of_a_known_field_is_where_it_should_be_and_faces_outwards() -> None:
    points = grid((40, 44, 36))
    ring = 0.35 - torch.stack([points[..., :2].norm(dim=-1) - 0.8, points[..., 2]], dim=-1).norm(dim=-1)
    mesh = isosurface(ring, *BOX)
    distance = torch.stack([mesh.vertices[:, :2].norm(dim=1) - 0.8, mesh.vertices[:, 2]], dim=1).norm(dim=1)
    assert float((distance - 0.35).abs().max()) < 0.02
    connectivity = Connectivity.of(mesh)
    assert (connectivity.genus, connectivity.boundary_loops, connectivity.is_manifold) == (1, 0, True)
    assert torch.equal(outwards(mesh).faces, mesh.faces)


def test_a_field_that_reaches_the_border_is_closed_there() -> None:
    connectivity = Connectivity.of(isosurface(torch.ones(6, 7, 8), *BOX, level=0.5))
    assert (connectivity.euler_characteristic, connectivity.boundary_loops) == (2, 0)


@pytest.mark.parametrize(
    ("field", "words"), [(torch.zeros(4, 4, 4), "nowhere above"), (torch.full((4, 4, 4), torch.nan), "finite")]
)
def test_fields_without_a_surface_are_refused(field: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        isosurface(field, *BOX)


def test_the_hull_of_a_sphere_is_a_little_more_than_the_sphere() -> None:
    cameras, sphere = ring_of_cameras(9, size=96), icosphere(3)
    seen = Silhouettes(cameras, silhouettes(sphere, cameras))
    hull = visual_hull(seen, (-1.2,) * 3, (1.2,) * 3, resolution=32)
    radii = hull.vertices.norm(dim=1)
    assert float(radii.min()) > 0.94 and float(radii.median()) < 1.1
    assert Connectivity.of(hull).genus == 0
    assert float(silhouette_iou(hull, seen).min()) > 0.96
    with pytest.raises(ValueError, match="nowhere above"):
        visual_hull(Silhouettes(cameras, seen.alphas * 0), *BOX, resolution=8)


@pytest.mark.slow
def test_the_hull_of_the_chair_fits_views_that_it_was_not_made_of(shared_data: Path) -> None:
    capture = read_capture(shared_data / "nerf_synthetic" / "chair", long_side=100)
    hull = visual_hull(Silhouettes.of(capture)[::10], (-1.0,) * 3, (1.0,) * 3, resolution=48)
    assert float(silhouette_iou(hull, Silhouettes.of(capture, capture.test[:6])).mean()) > 0.85


def test_signed_distances_are_zero_on_the_outline() -> None:
    alpha = torch.zeros(9, 9)
    alpha[:, 4:] = 1
    assert signed_distances(alpha)[3].tolist() == [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5]
    assert signed_distances(torch.zeros(3, 3)).unique().tolist() == [-8.0]


def test_points_are_spread_by_area() -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [9, 0, 0], [5, 1, 0]])
    points = surface_points(Mesh(corners, torch.tensor([[0, 1, 2], [3, 4, 5]])), 20_000)
    assert float((points[:, 0] < 3).float().mean()) == pytest.approx(0.2, abs=0.01)
    small = points[points[:, 0] < 3]
    torch.testing.assert_close(small.mean(dim=0), torch.tensor([1 / 3, 1 / 3, 0]), atol=0.01, rtol=0)


def test_chamfer_distance_is_the_gap_of_two_spheres() -> None:
    inner, outer = icosphere(4), icosphere(4, 1.25)
    assert chamfer_distance(inner, outer, 20_000) == pytest.approx(0.25, abs=0.01)
    assert chamfer_distance(inner, inner, 20_000) < 0.5 * math.sqrt(4 * math.pi / 20_000) * 1.1


def test_decimation_keeps_the_shape_with_fewer_faces() -> None:
    small = decimated(torus(), 600)
    assert 500 < len(small) <= 600 and Connectivity.of(small).genus == 1
    assert chamfer_distance(small, torus(), 10_000) < 0.03
