"""Topology refinement by silhouettes: identity, planted faces, holes, and the clean-up behind it."""

from __future__ import annotations

import pytest
import torch

from compress3d.mesh.cleaning import (
    areas,
    smoothed,
    with_split_vertices,
    without_branching_edges,
    without_degenerate_faces,
    without_stray_components,
)
from compress3d.mesh.connectivity import Connectivity
from compress3d.mesh.importance import SilhouetteCoverage, Silhouettes, shares_inside
from compress3d.mesh.mesh import FACES, Mesh
from compress3d.mesh.shapes import icosphere, joined, torus
from compress3d.mesh.silhouette import silhouettes
from compress3d.mesh.topology import Shape, TopologyRefinement
from secateur.allocation import Budget
from tests.compress3d.mesh.views import cameras_at, ring_of_cameras
from tests.contracts import assert_same

CAMERAS = ring_of_cameras(6, size=64)


def of(mesh: Mesh) -> Silhouettes:
    return Silhouettes(CAMERAS, silhouettes(mesh, CAMERAS))


def everywhere() -> Silhouettes:
    return Silhouettes(CAMERAS, torch.ones(len(CAMERAS), 64, 64))


def test_silhouettes_that_cover_all_change_nothing() -> None:
    mesh = torus(around=24, across=12)
    refined, went = TopologyRefinement().prune(mesh, everywhere())
    assert_same((refined.vertices, refined.faces), (mesh.vertices, mesh.faces))
    assert set(went.values()) == {0}


def test_a_mesh_passes_its_own_silhouettes() -> None:
    for mesh in (icosphere(3), torus(), joined(icosphere(1), torus(2.0, 0.2))):
        refined, went = TopologyRefinement().prune(mesh, of(mesh))
        assert_same((refined.vertices, refined.faces), (mesh.vertices, mesh.faces))
        assert set(went.values()) == {0}


def test_empty_silhouettes_refuse_everything_and_say_so() -> None:
    empty = Silhouettes(CAMERAS, torch.zeros(len(CAMERAS), 64, 64))
    mesh = icosphere(2)
    assert float(SilhouetteCoverage().score(mesh, empty)[FACES].max()) == 0
    with pytest.raises(ValueError, match="none of the 320 faces is inside the silhouettes"):
        TopologyRefinement().prune(mesh, empty)


def test_planted_faces_outside_are_found_exactly() -> None:
    mesh = torus()
    floaters = [
        Mesh(icosphere(1, 0.1).vertices + torch.tensor(place), icosphere(1).faces)
        for place in ([0.0, 0.0, 0.0], [1.2, 1.2, 0.5], [-0.9, 0.3, -0.9])
    ]
    refined, went = TopologyRefinement().prune(joined(*floaters, mesh), of(mesh))
    assert went == {"outside": 3 * 80, "degenerate": 0, "branching": 0, "stray": 0}
    assert_same((refined.vertices, refined.faces), (mesh.vertices, mesh.faces))


def test_a_ring_shaped_mask_opens_a_sphere_where_the_hole_is() -> None:
    camera, sphere = cameras_at([(0.001, 0.0, 4.0)], size=96), icosphere(4)
    y, x = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    hole = ((x - 48).square() + (y - 48).square()).sqrt() < 14
    refined, went = TopologyRefinement(threshold=0.5).prune(sphere, Silhouettes(camera, (~hole).float()[None]))
    corners = sphere.vertices[sphere.faces].mean(dim=1).double()
    K, viewmat = camera.Ks[0].double(), camera.viewmats[0].double()
    middles = (corners @ viewmat[:3, :3].T + viewmat[:3, 3]) @ K.T
    distance = (middles[:, :2] / middles[:, 2:] - 48).norm(dim=1)
    kept = len(refined)
    # What is clearly in the hole goes, what is clearly beside it stays; between, the rim.
    assert int((distance >= 16).sum()) <= kept <= int((distance >= 12).sum())
    assert went["outside"] + went["stray"] == len(sphere) - kept
    shape = Shape.of(refined)
    assert (Shape.of(sphere).euler_characteristic, shape.euler_characteristic) == (2, 0)
    assert (shape.components, shape.boundary_loops) == (1, 2)


def test_a_sphere_among_the_silhouettes_of_a_torus_loses_what_is_outside_and_opens() -> None:
    ring, sphere = torus(1.0, 0.4), icosphere(4, 1.38)
    refined, _ = TopologyRefinement().prune(sphere, of(ring))
    shape = Shape.of(refined)
    assert (shape.components, shape.euler_characteristic, shape.boundary_loops) == (1, 0, 2)
    # The flat views leave a band as high as the torus.
    assert float(refined.vertices[:, 2].abs().max()) < 0.6
    assert bool((sphere.vertices[:, 2].abs() > 1.3).any())


def test_a_torus_whose_hole_was_filled_gets_it_back() -> None:
    # A membrane across the hole, as a reconstruction leaves that never looked through it: edges branch at its rim.
    ring = torus(1.0, 0.35, 48, 24)
    inner = torch.arange(48) * 24 + 12
    middle = torch.tensor([len(ring.vertices)]).expand(48)
    membrane = torch.stack([inner, inner.roll(-1), middle], dim=1)
    wrong = Mesh(torch.cat([ring.vertices, torch.zeros(1, 3)]), torch.cat([membrane, ring.faces]))
    assert Shape.of(wrong).non_manifold_edges == 48 and Shape.of(wrong).genus is None
    refined, went = TopologyRefinement().prune(wrong, of(ring))
    assert went["outside"] == 48
    assert_same((refined.vertices, refined.faces), (ring.vertices, ring.faces))
    assert (Shape.of(refined).genus, Shape.of(refined).euler_characteristic) == (1, 0)


def test_the_order_of_faces_does_not_matter() -> None:
    mesh = joined(torus(), icosphere(1, 0.2))
    order = torch.randperm(len(mesh), generator=torch.Generator().manual_seed(0))
    first, _ = TopologyRefinement().prune(mesh, of(torus()))
    second, _ = TopologyRefinement().prune(Mesh(mesh.vertices, mesh.faces[order]), of(torus()))
    kept = [{tuple(map(tuple, face)) for face in mesh.vertices[mesh.faces].tolist()} for mesh in (first, second)]
    assert kept[0] == kept[1] and len(kept[0]) == len(first) == len(second) == 2304


def test_tolerance_forgives_a_view_that_errs_and_unseen_faces_go() -> None:
    mesh, given = icosphere(2), everywhere()
    given.alphas[0] = 0
    assert float(SilhouetteCoverage().score(mesh, given)[FACES].max()) == 0
    assert float(SilhouetteCoverage(tolerated=0.34).score(mesh, given)[FACES].min()) == 1
    far = Mesh(mesh.vertices + 100, mesh.faces)
    assert bool(torch.isnan(shares_inside(far, everywhere())).all())
    assert float(SilhouetteCoverage().score(far, everywhere())[FACES].max()) == 0


def test_a_budget_keeps_the_best_faces() -> None:
    mesh = joined(torus(around=24, across=12), icosphere(1, 0.1))
    refinement = TopologyRefinement(budget=Budget(limit=576), stray=0.0)
    refined, went = refinement.prune(mesh, of(torus()))
    assert len(refined) == 576 and went["outside"] == 80


def test_degenerate_and_repeated_faces_go() -> None:
    mesh = Mesh(torch.rand(5, 3), torch.tensor([[0, 1, 2], [1, 1, 2], [2, 0, 1], [2, 3, 4], [0, 2, 1]]))
    assert without_degenerate_faces(mesh).faces.tolist() == [[0, 1, 2], [2, 3, 4]]


def test_branching_edges_keep_their_two_largest_faces() -> None:
    points = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 2, 0], [-0.1, 0, 0]])
    mesh = Mesh(points, torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 4]]))
    clean = without_branching_edges(mesh)
    assert Connectivity.of(clean).non_manifold_edges == 0
    assert float(areas(clean).min()) == 0.5


def test_touching_fans_are_split_and_no_face_goes() -> None:
    mesh = Mesh(torch.rand(7, 3), torch.tensor([[0, 1, 2], [0, 3, 4], [5, 0, 6]]))
    split = with_split_vertices(mesh)
    assert Connectivity.of(split).is_manifold and not Connectivity.of(mesh).is_manifold
    assert_same(split.vertices[split.faces], mesh.vertices[mesh.faces])
    assert len(split.vertices) == 9


def test_stray_pieces_go_by_their_area() -> None:
    mesh = joined(icosphere(2), icosphere(1, 0.05), icosphere(3, 0.5))
    assert len(without_stray_components(mesh, 0.01)) == 320 + 1280
    assert len(without_stray_components(mesh, 0.5)) == 320
    assert without_stray_components(mesh, 0.0) is mesh


def test_smoothing_takes_noise_away_and_leaves_size_holes_and_topology() -> None:
    generator = torch.Generator().manual_seed(0)
    sphere = icosphere(3)
    capped = sphere.cut({FACES: sphere.vertices[sphere.faces].mean(dim=1)[:, 2] < 0.6})
    noisy = capped.with_vertices(capped.vertices + 0.02 * torch.randn(capped.vertices.shape, generator=generator))
    calm = smoothed(noisy, 10)
    before, after = (mesh.vertices.norm(dim=1) - 1 for mesh in (noisy, calm))
    assert float(after.std()) < 0.5 * float(before.std())
    assert abs(float(after.mean())) < 0.01
    assert_same(calm.faces, noisy.faces)
    rim = Connectivity.of(capped)
    loops = torch.from_numpy(rim.edges[rim.edge_faces == 1]).unique()
    size = [float(mesh.vertices[loops].norm(dim=1).mean()) for mesh in (capped, calm)]
    assert abs(size[0] - size[1]) < 0.02
    assert smoothed(noisy, 0) is noisy
