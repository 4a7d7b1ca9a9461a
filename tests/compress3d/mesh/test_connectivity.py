"""Topology of meshes whose topology is known, and open3d's word for it."""

from __future__ import annotations

import pytest
import torch

from compress3d.mesh.connectivity import Connectivity
from compress3d.mesh.mesh import FACES, Mesh
from compress3d.mesh.shapes import icosphere, joined, torus


def flat(*faces: tuple[int, int, int]) -> Mesh:
    count = 1 + max(max(face) for face in faces)
    return Mesh(torch.rand(count, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(faces))


def punched() -> Mesh:
    """A sphere without its two caps."""
    sphere = icosphere(3)
    return sphere.cut({FACES: sphere.vertices[sphere.faces].mean(dim=1)[:, 2].abs() < 0.6})


def moebius(count: int = 12) -> Mesh:
    """A closed strip with half a turn: quads between rungs i and i + 1, the last one crossed."""
    faces = []
    for i in range(count):
        a, b = 2 * i, 2 * i + 1
        c, d = (2 * i + 2, 2 * i + 3) if i < count - 1 else (1, 0)
        faces += [(a, b, c), (b, d, c)]
    return flat(*faces)


@pytest.mark.parametrize(
    ("mesh", "characteristic", "genus", "loops", "components"),
    [
        (icosphere(2), 2, 0, 0, 1),
        (torus(), 0, 1, 0, 1),
        (joined(icosphere(1), torus(), torus()), 2, 2, 0, 3),
        (punched(), 0, 0, 2, 1),
        (moebius(), 0, None, 1, 1),
        (flat((0, 1, 2)), 1, 0, 1, 1),
        (flat((0, 1, 2), (0, 3, 4)), 1, 0, 2, 2),
        (flat((0, 1, 2), (0, 1, 3), (0, 1, 4)), 1, None, 1, 1),
    ],
)
def test_characteristic_genus_boundaries_and_components(
    mesh: Mesh, characteristic: int, genus: int | None, loops: int, components: int
) -> None:
    connectivity = Connectivity.of(mesh)
    assert connectivity.euler_characteristic == characteristic
    assert connectivity.genus == genus
    assert connectivity.boundary_loops == loops
    assert len(set(connectivity.components.tolist())) == components


def test_open3d_counts_the_same() -> None:
    open3d = pytest.importorskip("open3d", reason="open3d is not installed", exc_type=ImportError)
    for mesh in (icosphere(2), torus(), joined(icosphere(1), torus()), punched()):
        other = open3d.geometry.TriangleMesh(
            open3d.utility.Vector3dVector(mesh.vertices.double().numpy()),
            open3d.utility.Vector3iVector(mesh.faces.numpy()),
        )
        ours = Connectivity.of(mesh)
        labels = other.cluster_connected_triangles()[0]
        assert ours.euler_characteristic == other.euler_poincare_characteristic()
        assert len(set(ours.components.tolist())) == len(set(labels))
        assert ours.is_manifold == (other.is_edge_manifold() and other.is_vertex_manifold())
        assert ours.is_orientable == other.is_orientable()


def test_an_empty_mesh_has_nothing() -> None:
    connectivity = Connectivity.of(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)))
    assert (connectivity.euler_characteristic, connectivity.boundary_loops, connectivity.genus) == (0, 0, 0)
