"""Views sampled by the scene's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.formats import read_scene
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import Layout, look_at, orbit, sample_views, scene_shape, split_views
from tests.contracts import assert_deterministic


def scene_at(means: Tensor, opacity: float = 0.8, size: float = 0.02) -> SplatScene:
    n = len(means)
    return SplatScene(
        means=means.float(),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(n, 4).clone(),
        scales=torch.full((n, 3), size).log(),
        opacities=torch.full((n,), opacity).logit(),
        sh0=torch.zeros(n, 1, 3),
        shN=torch.zeros(n, 0, 3),
    )


def blob(n: int = 3000, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def room(n: int = 6000, seed: int = 0) -> Tensor:
    """The six sides of a box of 6 x 3 x 4, with a table on its floor (y is down)."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 3, generator=generator) * 2 - 1
    side = torch.randint(0, 3, (n,), generator=generator)
    points[torch.arange(n), side] = torch.sign(points[torch.arange(n), side])
    table = torch.rand(n // 20, 3, generator=generator) * torch.tensor([0.6, 0.4, 0.5]) + torch.tensor(
        [-0.3, 0.6, -0.2]
    )
    return torch.cat([points, table]) * torch.tensor([3.0, 1.5, 2.0])


def garden(n: int = 6000, seed: int = 0) -> Tensor:
    """A table on a lawn, with trees and a sky far away."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n // 10, 3, generator=generator), dim=1)
    far = directions * (20 + 20 * torch.rand(n // 10, 1, generator=generator))
    far[:, 1] = -far[:, 1].abs()
    lawn = torch.randn(n // 3, 3, generator=generator) * torch.tensor([2.0, 0.02, 2.0]) + torch.tensor([0, 1.0, 0])
    return torch.cat([blob(n, seed) * 0.5, lawn, far])


def pixels(cameras: Cameras, points: Tensor) -> tuple[Tensor, Tensor]:
    """(C, N, 2) pixel positions and (C, N) depths."""
    seen = points @ cameras.viewmats[:, :3, :3].transpose(1, 2) + cameras.viewmats[:, None, :3, 3]
    projected = seen @ cameras.Ks.transpose(1, 2)
    return projected[..., :2] / projected[..., 2:], seen[..., 2]


def in_image(cameras: Cameras, points: Tensor) -> Tensor:
    positions, depths = pixels(cameras, points)
    size = torch.tensor([cameras.width, cameras.height])
    return (depths > 0) & ((positions >= 0) & (positions < size)).all(dim=2)


@pytest.mark.parametrize(
    ("points", "layout"),
    [(blob(), "outside_in"), (room(), "inside_out"), (garden(), "inside_out")],
    ids=["object", "room", "garden"],
)
def test_layout_is_detected(points: Tensor, layout: str) -> None:
    assert scene_shape(scene_at(points)).layout == layout


def test_layout_is_detected_of_an_object_on_the_ground() -> None:
    ground = torch.rand(3000, 3) * torch.tensor([6.0, 0.02, 6.0]) + torch.tensor([-3.0, 2.0, -3.0])
    assert scene_shape(scene_at(torch.cat([blob() * 0.5, ground]))).layout == "outside_in"


def test_layout_of_a_hollow_object_with_leftovers_inside() -> None:
    shell = torch.nn.functional.normalize(blob(), dim=1)
    leftovers = torch.nn.functional.normalize(blob(20, seed=1), dim=1) * 0.5
    assert scene_shape(scene_at(torch.cat([shell, leftovers]))).layout == "outside_in"


def test_shape_ignores_a_few_floaters() -> None:
    clean = scene_shape(scene_at(blob()))
    dirty = scene_shape(scene_at(torch.cat([blob(), torch.full((15, 3), 500.0)])))
    assert dirty.radius == pytest.approx(clean.radius, rel=0.05)
    np.testing.assert_allclose(dirty.centre, clean.centre, atol=0.1)


def test_shape_ignores_gaussians_that_are_not_finite() -> None:
    scene = scene_at(torch.cat([blob(), torch.full((5, 3), torch.nan), torch.full((5, 3), torch.inf)]))
    assert scene_shape(scene).radius == pytest.approx(scene_shape(scene_at(blob())).radius)


@pytest.mark.parametrize("means", [torch.zeros(0, 3), torch.full((3, 3), torch.nan)], ids=["empty", "nan"])
def test_a_scene_without_anything_to_see_is_refused(means: Tensor) -> None:
    with pytest.raises(ValueError, match="nothing to see"):
        sample_views(scene_at(means), 4, 32, 32)


def test_a_single_gaussian_is_framed_by_its_size() -> None:
    cameras = sample_views(scene_at(torch.tensor([[1.0, 2.0, 3.0]]), size=0.5), 5, 32, 32)
    distances = (cameras.positions - torch.tensor([1.0, 2.0, 3.0])).norm(dim=1)
    assert bool(((distances > 1.0) & (distances < 5.0)).all())


def test_outside_in_views_frame_the_object_from_above_and_all_around() -> None:
    points = blob() * torch.tensor([1.0, 0.5, 0.7]) + torch.tensor([5.0, -2.0, 1.0])
    cameras = sample_views(scene_at(points), 40, 64, 48)
    shape = scene_shape(scene_at(points))
    offsets = cameras.positions.double() - torch.from_numpy(shape.centre)
    distances = offsets.norm(dim=1) / shape.radius
    elevations = torch.rad2deg(torch.asin(-offsets[:, 1] / offsets.norm(dim=1)))
    azimuths = torch.rad2deg(torch.atan2(offsets[:, 0], offsets[:, 2])).sort().values
    assert distances.min() > 0.99 and distances.max() < 2.51
    assert ((distances > 1.5) & (distances < 2.5)).double().mean() > 0.7
    assert -11 < elevations.min() < 0 and 50 < elevations.max() < 66
    assert (azimuths.diff()).max() < 30
    assert in_image(cameras, points.float()).double().mean() > 0.75


def test_images_are_upright() -> None:
    points = blob()
    top = torch.tensor([[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]])
    for up, order in (((0.0, -1.0, 0.0), 1), ((0.0, 1.0, 0.0), -1)):
        positions, _ = pixels(sample_views(scene_at(points), 12, 32, 32, up=up), top)
        assert bool((order * (positions[:, 1, 1] - positions[:, 0, 1]) > 0).all())


def test_up_may_point_along_z() -> None:
    cameras = sample_views(scene_at(blob()), 12, 32, 32, up=(0.0, 0.0, 1.0))
    assert (cameras.positions[:, 2] > 0).double().mean() > 0.8


@pytest.mark.parametrize("points", [room(), garden()], ids=["room", "garden"])
def test_inside_out_views_stand_in_free_space_and_look_all_around(points: Tensor) -> None:
    scene = scene_at(points)
    cameras = sample_views(scene, 24, 64, 64)
    nearest = torch.cdist(cameras.positions, scene.means).min(dim=1).values
    assert nearest.min() > 0.1
    assert bool((cameras.positions.abs().max(dim=1).values < 4).all())
    assert bool((cameras.positions[:, 1] < 1.5).all()), "above the floor: y is down"
    assert len(torch.unique(cameras.positions, dim=0)) == 24
    forward = cameras.viewmats[:, 2, :3]
    assert bool((forward.mean(dim=0)[[0, 2]].abs() < 0.5).all())
    assert in_image(cameras, scene.means).any(dim=0).double().mean() > 0.8


@pytest.mark.parametrize("layout", ["outside_in", "inside_out"])
def test_layout_can_be_chosen(layout: Literal["outside_in", "inside_out"]) -> None:
    scene = scene_at(blob())
    distances = sample_views(scene, 10, 32, 32, layout=layout).positions.norm(dim=1)
    shape = scene_shape(scene)
    inside = distances < 2.1 * shape.median_radius
    assert bool(inside.all()) == (layout == "inside_out")


@pytest.mark.parametrize("layout", ["outside_in", "inside_out"])
def test_views_are_determined_by_the_seed(layout: Layout) -> None:
    scene = scene_at(blob())
    assert_deterministic(lambda: sample_views(scene, 6, 32, 32, seed=3, layout=layout).viewmats)
    first, second = (sample_views(scene, 6, 32, 32, seed=seed, layout=layout).positions for seed in (0, 1))
    assert (torch.cdist(first, second) > 1e-3).all()


@pytest.mark.parametrize("layout", ["outside_in", "inside_out"])
def test_viewmats_are_rigid(layout: Layout) -> None:
    rotations = sample_views(scene_at(blob()), 8, 32, 32, layout=layout).viewmats[:, :3, :3]
    torch.testing.assert_close(rotations @ rotations.transpose(1, 2), torch.eye(3).expand(8, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(8))


def test_look_at_projects_the_target_to_the_middle() -> None:
    positions = np.array([[1.0, 2.0, 3.0], [0.0, -5.0, 0.0]])
    targets = np.array([[0.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    viewmats = look_at(positions, targets)
    seen = torch.einsum("cij,cj->ci", viewmats[:, :3, :3], torch.from_numpy(targets).float()) + viewmats[:, :3, 3]
    distances = np.linalg.norm(targets - positions, axis=1)
    torch.testing.assert_close(seen, torch.tensor([[0.0, 0.0, d] for d in distances]).float(), atol=1e-5, rtol=1e-5)


def test_orbit_is_one_even_turn() -> None:
    scene = scene_at(blob())
    cameras = orbit(scene, 8, 32, 32, elevation_degrees=20)
    shape = scene_shape(scene)
    offsets = (cameras.positions.double() - torch.from_numpy(shape.centre)) / shape.radius
    torch.testing.assert_close(offsets.norm(dim=1), torch.full((8,), 2.2).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        -offsets[:, 1] / 2.2, torch.full((8,), np.sin(np.radians(20))).double(), atol=1e-4, rtol=0
    )
    steps = torch.einsum("ij,ij->i", offsets, offsets.roll(1, 0))
    torch.testing.assert_close(steps, steps[:1].expand(8), atol=1e-3, rtol=0)


def test_split_views_interleaves_and_shares_nothing() -> None:
    cameras = sample_views(scene_at(blob()), 21, 32, 32)
    score, judge = split_views(cameras)
    assert (len(score), len(judge)) == (11, 10)
    assert torch.equal(score.viewmats, cameras.viewmats[0::2])
    assert (torch.cdist(score.positions, judge.positions) > 1e-3).all()
    heights = [-part.positions[:, 1].mean() for part in (score, judge)]
    assert heights[0] == pytest.approx(float(heights[1]), abs=0.5)


def test_split_views_needs_two() -> None:
    with pytest.raises(ValueError, match="two cameras"):
        split_views(sample_views(scene_at(blob()), 1, 32, 32))


@pytest.mark.parametrize("make", [sample_views, orbit])
def test_no_views_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="count"):
        make(scene_at(blob()), 0, 32, 32)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["plant.splat", "biker.compressed.ply", "playbot/3_0/meta.json"])
def test_real_objects_are_seen_from_outside_and_not_through_the_held_out_views(shared_data: Path, name: str) -> None:
    scene = read_scene(shared_data / "splats" / name)
    cameras = sample_views(scene, 32, 400, 400)
    assert scene_shape(scene).layout == "outside_in"
    visible = scene.means[scene.peak_opacities() > 0.1]
    share = in_image(cameras, visible).double().mean(dim=1)
    assert share.mean() > 0.75 and share.min() > 0.15
    assert in_image(cameras, visible).any(dim=0).double().mean() > 0.98
    held_out = json.loads((shared_data / "splats" / "heldout_views.json").read_text())
    judges = Cameras.from_json(held_out[name.split("/")[0].split(".")[0]])
    gaps = torch.cdist(cameras.positions, judges.positions) / judges.positions.norm(dim=1)
    assert gaps.min() > 0.01
