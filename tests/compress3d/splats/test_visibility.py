"""Visibility lists: fewer Gaussians, the same images where cameras have been, and files of bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import render
from compress3d.splats.rasterize.contributions import ray_contributions
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import sample_views
from compress3d.splats.visibility import VisibilityLists, load_lists, save_lists, view_points
from tests.compress3d.splats.rasterize.clouds import rounded, scene_of
from tests.contracts import assert_deterministic, assert_round_trip, assert_same


def solid(count: int = 700) -> SplatScene:
    """An opaque cloud, of which each view sees the near side."""
    scene = scene_of(rounded(count, size=0.2), degree=1)
    return scene.with_tensors(opacities=torch.full_like(scene.opacities, 4.0))


SCENE = solid()
CAMERAS = sample_views(SCENE, 10, 48, 40, layout="outside_in")
FULL = render(SCENE, CAMERAS)


def bytes_of(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().byte()


def test_with_a_threshold_of_zero_images_are_equal_to_eight_bits() -> None:
    lists = VisibilityLists.of(SCENE, CAMERAS, 4)
    shown = lists.render(CAMERAS)
    assert_same(bytes_of(FULL), bytes_of(shown))
    torch.testing.assert_close(shown, FULL, atol=1e-3, rtol=0)
    assert int(lists.counts().min()) < 0.96 * len(SCENE)
    grey = (0.1, 0.5, 0.4)
    assert_same(bytes_of(render(SCENE, CAMERAS, grey)), bytes_of(lists.render(CAMERAS, grey)))


def test_a_small_threshold_takes_more_and_shows_almost_the_same() -> None:
    whole = VisibilityLists.of(SCENE, CAMERAS, 4)
    lists = VisibilityLists.of(SCENE, CAMERAS, 4, threshold=2e-3)
    assert bool((lists.visible <= whole.visible).all())
    assert int(lists.counts().sum()) < int(whole.counts().sum())
    different = (lists.render(CAMERAS) - FULL).abs().amax(dim=-1) > 1 / 255
    assert float(different.float().mean()) < 0.01


def test_more_clusters_need_fewer_gaussians_each() -> None:
    shares = [float(VisibilityLists.of(SCENE, CAMERAS, clusters).counts().float().mean()) for clusters in (1, 3, 10)]
    assert shares[0] > shares[1] > shares[2]


def test_a_cluster_sees_what_its_cameras_see() -> None:
    lists = VisibilityLists.of(SCENE, CAMERAS, 3, threshold=0.01)
    labels = lists.nearest(CAMERAS)
    assert set(labels.tolist()) == {0, 1, 2} and len(lists) == 3
    for cluster in range(3):
        seen = ray_contributions(SCENE, CAMERAS[labels == cluster]).max
        assert_same(lists.visible[cluster], seen > 0.01)
        assert_same(dict(lists.seen_from(cluster).tensors()), dict(SCENE.select(seen > 0.01).tensors()))


def test_cameras_that_look_apart_from_one_place_are_clusters_of_their_own() -> None:
    there, back = torch.eye(4), torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    cameras = Cameras(torch.stack([there, back, there, back]), CAMERAS.Ks[:4], 48, 40)
    lists = VisibilityLists.of(SCENE, cameras, 2)
    first, second, *rest = lists.nearest(cameras).tolist()
    assert rest == [first, second] and first != second
    assert len(VisibilityLists.of(SCENE, cameras, 64)) == 2, "no more clusters than there are views"
    assert view_points(cameras, 2.0).shape == (4, 6)


def test_jittered_cameras_add_and_never_take() -> None:
    plain = VisibilityLists.of(SCENE, CAMERAS[:2], 1, threshold=0.01)
    jittered = VisibilityLists.of(SCENE, CAMERAS[:2], 1, threshold=0.01, jitters=2, jitter=0.1)
    assert bool((plain.visible <= jittered.visible).all())
    assert int(jittered.counts()[0]) > int(plain.counts()[0])
    still = VisibilityLists.of(SCENE, CAMERAS[:2], 1, threshold=0.01, jitters=2, jitter=0.0)
    assert_same(plain.visible, still.visible)


def test_it_is_deterministic() -> None:
    assert_deterministic(lambda: VisibilityLists.of(SCENE, CAMERAS, 4, jitters=1, seed=3).visible)


def test_what_is_saved_loads_back_bit_for_bit(tmp_path: Path) -> None:
    lists = VisibilityLists.of(SCENE, CAMERAS, 3, threshold=1e-3)

    def state(of: VisibilityLists) -> dict[str, object]:
        return {"centres": of.centres, "visible": of.visible, "unit": of.unit, "threshold": of.threshold}

    assert_round_trip(
        lambda to: save_lists(to, lists), lambda of: state(load_lists(of, SCENE)), state(lists), tmp_path / "lists"
    )
    assert_same(lists.render(CAMERAS), load_lists(tmp_path / "lists", SCENE).render(CAMERAS))
    assert (tmp_path / "lists").stat().st_size < 3 * (len(SCENE) / 8 + 25) + 700


def test_damaged_files_and_other_scenes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "lists"
    with pytest.raises(FileNotFoundError, match="lists"):
        load_lists(path, SCENE)
    path.write_bytes(b"no lists at all")
    with pytest.raises(ValueError, match="lists: "):
        load_lists(path, SCENE)
    save_lists(path, VisibilityLists.of(SCENE, CAMERAS, 3))
    with pytest.raises(ValueError, match="700 Gaussians"):
        load_lists(path, SCENE.select(torch.arange(699)))
    with pytest.raises(ValueError, match="another order"):
        load_lists(path, SCENE.select(torch.arange(700).flip(0)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="lists: "):
        load_lists(path, SCENE)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "another"}, "not secateur"),
        ({"version": 7}, "version 7"),
        ({"unit": 0}, "unit"),
        ({"unit": "wide"}, "unit"),
        ({"threshold": -1}, "threshold"),
        ({"centres": torch.zeros(3, 5)}, "centres"),
        ({"centres": torch.full((3, 6), torch.nan)}, "centres"),
        ({"centres": torch.zeros(0, 6), "masks": torch.zeros(0, 88, dtype=torch.uint8)}, "at least 1"),
        ({"masks": torch.zeros(3, 87, dtype=torch.uint8)}, "masks"),
        ({"masks": torch.zeros(3, 88)}, "masks"),
        ({"spare": torch.zeros(3)}, "spare"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, change: dict[str, object], match: str) -> None:
    path = tmp_path / "lists"
    save_lists(path, VisibilityLists.of(SCENE, CAMERAS[:3], 3))
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["secateur"])
    fields = {name: value for name, value in change.items() if not isinstance(value, Tensor)}
    tensors = {name: value for name, value in change.items() if isinstance(value, Tensor)}
    save_file({**load_file(path), **tensors}, path, {"secateur": json.dumps({**header, **fields})})
    with pytest.raises(ValueError, match=match):
        load_lists(path, SCENE)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="at least one camera"):
        VisibilityLists.of(SCENE, CAMERAS[:0])
    with pytest.raises(ValueError, match="clusters"):
        VisibilityLists.of(SCENE, CAMERAS, 0)
    with pytest.raises(ValueError, match="visible must be"):
        VisibilityLists(SCENE, torch.zeros(2, 6), 1.0, torch.ones(2, 3, dtype=torch.bool))
