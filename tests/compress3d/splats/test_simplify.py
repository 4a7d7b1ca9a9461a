"""Simplifying: exact counts, nothing for nothing, and better than leaving out what matters least."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.splats.bonsai import bonsai
from compress3d.splats.formats import read_scene
from compress3d.splats.merge import Merge
from compress3d.splats.rasterize import render
from compress3d.splats.rasterize.contributions import observe, ray_contributions
from compress3d.splats.refit import Refit
from compress3d.splats.scene import SplatScene
from compress3d.splats.simplify import simplify
from compress3d.splats.views import sample_views
from tests.compress3d.splats.rasterize.clouds import pinhole, rounded, scene_of
from tests.contracts import assert_deterministic, assert_same

CAMERAS = pinhole(48, 40).cameras


def psnr(scene: SplatScene, original: SplatScene, cameras: Cameras) -> float:
    error = render(scene, cameras).clamp(0, 1) - render(original, cameras).clamp(0, 1)
    return float(-10 * torch.log10(error.double().square().mean()))


def selected(scene: SplatScene, count: int, cameras: Cameras) -> SplatScene:
    """The `count` Gaussians that contribute most."""
    return scene.select(ray_contributions(scene, cameras).sum.topk(count).indices)


@pytest.fixture(scope="module")
def tree() -> SplatScene:
    return bonsai(3000)


@pytest.mark.parametrize(("share", "margin_db"), [(0.5, 3.0), (0.2, 3.0), (0.05, 2.0)])
def test_better_than_selection_on_views_it_never_saw(tree: SplatScene, share: float, margin_db: float) -> None:
    seen, held_out = sample_views(tree, 10, 96, 96, seed=0), sample_views(tree, 5, 96, 96, seed=7)
    count = int(share * len(tree))
    simplified = simplify(tree, count, seen)
    assert len(simplified) == count
    baseline = psnr(selected(tree, count, seen), tree, held_out)
    assert psnr(simplified, tree, held_out) > baseline + margin_db


def test_each_step_earns_its_place(tree: SplatScene) -> None:
    seen, held_out = sample_views(tree, 10, 96, 96, seed=0), sample_views(tree, 5, 96, 96, seed=7)
    merged = simplify(tree, 600, seen, refit=Refit(rounds=0))
    assert psnr(merged, tree, held_out) > psnr(selected(tree, 600, seen), tree, held_out)
    refitted = Refit()(merged, seen, render(tree, seen).numpy())
    assert psnr(refitted, tree, held_out) > psnr(merged, tree, held_out) + 1.0
    assert_same(dict(refitted.tensors()), dict(simplify(tree, 600, seen).tensors()), "merge, then refit")


def test_better_than_selection_on_a_real_scene(shared_data: Path) -> None:
    plant = read_scene(shared_data / "splats" / "plant.splat")
    plant = plant.select(torch.arange(0, len(plant), 8)).with_sh_degree(0)
    seen, held_out = sample_views(plant, 8, 80, 80, seed=0), sample_views(plant, 4, 80, 80, seed=7)
    count = len(plant) // 4
    simplified = simplify(plant, count, seen)
    assert psnr(simplified, plant, held_out) > psnr(selected(plant, count, seen), plant, held_out) + 2.0


@pytest.mark.parametrize("degree", [0, 3])
def test_counts_are_exact(degree: int) -> None:
    for size in (2, 3, 40):
        scene = scene_of(rounded(size, size=0.4), degree)
        for count in {1, 2, size // 2, size - 1} & set(range(1, size)):
            simplified = simplify(scene, count, CAMERAS)
            assert len(simplified) == count and simplified.sh_degree == degree
            for name, tensor in simplified.tensors().items():
                assert bool(torch.isfinite(tensor).all()), name


def test_a_full_count_changes_nothing() -> None:
    scene = scene_of(rounded(30), 2)
    assert_same(dict(scene.tensors()), dict(simplify(scene, 30, CAMERAS).tensors()))


def test_scenes_that_no_camera_sees_are_simplified_too() -> None:
    scene = scene_of(rounded(20))
    away = scene.with_tensors(means=scene.means + 1e3)
    assert len(simplify(away, 5, CAMERAS)) == 5


@pytest.mark.parametrize("count", [0, -3, 31])
def test_counts_out_of_range_are_named(count: int) -> None:
    with pytest.raises(ValueError, match="count must be 1 to 30"):
        simplify(scene_of(rounded(30)), count, CAMERAS)


def test_no_camera_is_named() -> None:
    with pytest.raises(ValueError, match="at least one camera"):
        simplify(scene_of(rounded(30)), 10, CAMERAS[:0])


@pytest.mark.parametrize("reuse", [False, True])
def test_progress_goes_from_nothing_to_all(reuse: bool) -> None:
    scene = scene_of(rounded(80, size=0.3))
    observation = observe(scene, CAMERAS) if reuse else None
    steps: list[tuple[float, str]] = []
    simplify(scene, 20, CAMERAS, observation=observation, progress=lambda share, step: steps.append((share, step)))
    shares = [share for share, _ in steps]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] == 1.0
    names = list(dict.fromkeys(step for _, step in steps))
    assert names == (["merge", "refit"] if reuse else ["observe", "merge", "refit"])
    assert len(steps) > 6


def test_an_observation_can_be_reused() -> None:
    scene = scene_of(rounded(60, size=0.3), 1)
    observation = observe(scene, CAMERAS)
    for count in (10, 40):
        again = simplify(scene, count, CAMERAS, observation=observation)
        assert_same(dict(simplify(scene, count, CAMERAS).tensors()), dict(again.tensors()))


def test_runs_agree_and_the_scene_is_left_alone() -> None:
    scene = scene_of(rounded(80, size=0.3), 1)
    before = {name: tensor.clone() for name, tensor in scene.tensors().items()}
    assert_deterministic(lambda: dict(simplify(scene, 20, CAMERAS).tensors()))
    assert_same(before, dict(scene.tensors()))


def test_how_it_is_done_can_be_said() -> None:
    scene = scene_of(rounded(80, size=0.3))
    merge, refit = Merge(neighbours=3, share=0.5), Refit(rounds=1, iterations=2)
    masses = observe(scene, CAMERAS).weights.numpy()
    expected = refit(merge(scene, 25, masses, CAMERAS), CAMERAS, observe(scene, CAMERAS).images.numpy())
    assert_same(dict(expected.tensors()), dict(simplify(scene, 25, CAMERAS, merge=merge, refit=refit).tensors()))


def test_antialiased_scenes_stay_antialiased() -> None:
    scene = scene_of(rounded(80, size=0.3), antialiased=True)
    simplified = simplify(scene, 30, CAMERAS)
    assert simplified.antialiased
    assert psnr(simplified, scene, CAMERAS) > psnr(selected(scene, 30, CAMERAS), scene, CAMERAS) + 2.0
