from dataclasses import replace

import pytest
import torch

from compress3d.captures import StartPoints
from compress3d.splats.initialise import SH_C0, initial_scene, neighbour_distances, seen_points
from tests.compress3d.splats.photographed import blobs, photographed


def test_starts_from_the_points_of_the_capture() -> None:
    points = StartPoints(torch.arange(15.0).reshape(5, 3), torch.arange(15, dtype=torch.uint8).reshape(5, 3) * 10)
    capture = replace(photographed(), points=points)
    scene = initial_scene(capture, 10, sh_degree=2, antialiased=True)
    assert torch.equal(scene.means, points.xyz)
    assert torch.allclose(0.5 + SH_C0 * scene.sh0[:, 0], points.rgb / 255, atol=1e-6)
    assert torch.allclose(scene.peak_opacities(), torch.tensor(0.1))
    assert scene.sh_degree == 2 and not scene.shN.any() and scene.antialiased
    few = initial_scene(capture, 3, seed=1)
    assert len(few) == 3 and all((row == points.xyz).all(dim=1).any() for row in few.means)


def test_a_ball_is_as_wide_as_its_neighbours_are_far() -> None:
    # The corners of a unit square and its centre: the corners' neighbours are the centre and two corners.
    means = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.5, 0]])
    corner = ((0.5 + 1 + 1) / 3) ** 0.5
    assert torch.allclose(neighbour_distances(means), torch.tensor([corner] * 4 + [0.5**0.5]))
    assert bool((neighbour_distances(means[:1].repeat(4, 1)) > 0).all())
    assert len(neighbour_distances(means[:1])) == 1


def test_points_of_photographs_with_alpha_lie_inside_the_visual_hull() -> None:
    points, colours = seen_points(photographed(), 200, torch.Generator().manual_seed(0))
    nearest = torch.cdist(points, blobs().means).amin(dim=1)
    assert len(points) == 200 and float(nearest.max()) < 0.7
    assert bool((colours >= 0).all()) and bool((colours <= 1).all())


def test_points_of_opaque_photographs_are_seen_by_several_cameras() -> None:
    capture = photographed(alpha=False)
    points, _ = seen_points(capture, 200, torch.Generator().manual_seed(0))
    local = torch.einsum("cij,pj->cpi", capture.cameras.viewmats[:, :3, :3], points)
    local = local + capture.cameras.viewmats[:, None, :3, 3]
    tangent = local[..., :2].abs() / local[..., 2:].clamp_min(1e-3)
    seen = (local[..., 2] > 0) & (tangent < 0.4 + 1e-4).all(dim=2)
    assert int(seen[capture.train].sum(dim=0).min()) >= 3


def test_the_same_seed_starts_from_the_same_scene() -> None:
    first, second, other = (initial_scene(photographed(), 50, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.means, second.means) and not torch.equal(first.means, other.means)


def test_does_not_look_at_test_photographs() -> None:
    capture = photographed()
    changed = replace(capture, images=capture.images.clone())
    changed.images[capture.test] = 0
    assert torch.equal(initial_scene(capture, 50).sh0, initial_scene(changed, 50).sh0)


def test_refuses_what_cannot_be_started() -> None:
    capture = photographed()
    with pytest.raises(ValueError, match="at least 1 Gaussian"):
        initial_scene(capture, 0)
    with pytest.raises(ValueError, match="no photographs to train on"):
        initial_scene(replace(capture, train=capture.train[:0]), 5)
