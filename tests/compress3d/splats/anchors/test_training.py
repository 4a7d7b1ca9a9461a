"""Training from photographs, and what comes of it: growth, files, ordinary scenes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress3d.captures import StartPoints
from compress3d.splats.anchors import (
    AnchorGrower,
    ForestField,
    ForestGrower,
    GrowthSchedule,
    NeuralField,
    ScaffoldField,
    decode_scene,
    render_field,
    start_points,
    train_field,
)
from compress3d.splats.anchors.rows import Grower
from compress3d.splats.anchors.train import FieldTraining, field_psnr
from compress3d.splats.rasterize import render, render_each
from secateur.metrics.image import psnr
from secateur.training.batches import Shuffled
from secateur.training.fit import fit
from tests.compress3d.splats.anchors.captures import blobs, capture, forest, ring, scaffold
from tests.contracts import assert_deterministic, assert_same

SCHEDULE = GrowthSchedule(5, 20, 40, 10)
METHODS = pytest.mark.parametrize("method", ["scaffold", "forest"])


def start(method: str) -> tuple[NeuralField, Grower]:
    if method == "scaffold":
        anchors = scaffold()
        return anchors, AnchorGrower(anchors, SCHEDULE, threshold=1e-4)
    leaves = forest()
    return leaves, ForestGrower(leaves, SCHEDULE, threshold=1e-4)


@cache
def trained(method: str, steps: int = 60) -> NeuralField:
    field, grower = start(method)
    train_field(field, capture(), grower, steps=steps)
    return field


@METHODS
def test_training_sharpens_views_that_it_has_not_seen(method: str) -> None:
    before = field_psnr(start(method)[0], capture(), capture().test)
    after = field_psnr(trained(method), capture(), capture().test)
    assert after > before + 3, f"{before:.2f} dB before, {after:.2f} dB after"


@METHODS
def test_a_field_grows_while_it_is_trained(method: str) -> None:
    assert len(trained(method)) > len(start(method)[0])


@METHODS
def test_training_repeats_itself_and_no_steps_change_nothing(method: str) -> None:
    def make() -> dict[str, Tensor]:
        field, grower = start(method)
        train_field(field, capture(), grower, steps=25)
        return dict(field.state_dict())

    assert_deterministic(make)
    field, grower = start(method)
    train_field(field, capture(), grower, steps=0)
    assert_same(dict(start(method)[0].state_dict()), dict(field.state_dict()))


@METHODS
def test_a_stopped_training_goes_on_to_the_same_field(method: str, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: float, doing: str) -> None:
        if done > 0.55:
            raise Stop

    path = tmp_path / "checkpoint"
    whole, grower = start(method)
    train_field(whole, capture(), grower, steps=50)
    field, grower = start(method)

    def run(field: NeuralField, grower: Grower, **options: object) -> None:
        module = FieldTraining(field, capture(), grower, 50)
        batches = Shuffled(len(capture().train), 1, 0)
        fit(module, batches, steps=50, checkpoint=path, checkpoint_seconds=0, **options)  # type: ignore[arg-type]

    with pytest.raises(Stop):
        run(field, grower, report=stop)
    again, grower = start(method)
    run(again, grower, resume=True)
    assert_same(dict(whole.state_dict()), dict(again.state_dict()))


@METHODS
def test_a_scene_looks_like_the_field_from_its_viewpoints(method: str) -> None:
    field, cameras = trained(method), capture().cameras
    scene = decode_scene(field, cameras)
    assert scene.sh_degree == 2
    with torch.no_grad():
        shown = torch.stack(list(render_field(field, cameras)))
        quality = psnr(render(scene, cameras), shown).mean()
    assert float(quality) > (40 if method == "forest" else 25), f"{float(quality):.1f} dB"


def test_a_forest_seen_from_one_viewpoint_is_decoded_exactly() -> None:
    field, camera = trained("forest"), ring(1)
    with torch.no_grad():
        shown = next(iter(render_field(field, camera)))
        torch.testing.assert_close(
            render(decode_scene(field, camera, sh_degree=0), camera)[0], shown, rtol=0, atol=2e-3
        )


def test_more_harmonics_come_closer() -> None:
    field, cameras = trained("scaffold"), capture().cameras
    with torch.no_grad():
        shown = torch.stack(list(render_field(field, cameras)))
        flat, curved = (psnr(render(decode_scene(field, cameras, degree), cameras), shown).mean() for degree in (0, 2))
    assert float(curved) >= float(flat)


def test_what_cannot_be_decoded_says_why() -> None:
    field = scaffold()
    with pytest.raises(ValueError, match="viewpoint"):
        decode_scene(field, ring()[:0])
    with pytest.raises(ValueError, match="sh_degree"):
        decode_scene(field, ring(), sh_degree=4)
    with torch.no_grad():
        field.opacity_network.get_parameter("2.weight").zero_()
        field.opacity_network.get_parameter("2.bias").fill_(-1)
    with pytest.raises(ValueError, match="visible"):
        decode_scene(field, ring(3))


def test_masked_pixels_do_not_count() -> None:
    spoilt = capture().images.clone()
    spoilt[:, :, :24] = 0
    masks = torch.full(spoilt.shape[:3], 255, dtype=torch.uint8)
    masks[:, :, :24] = 0
    results = []
    for images in (capture().images, spoilt):
        field = forest()
        train_field(field, replace(capture(), images=images, masks=masks), None, steps=3)
        results.append(dict(field.state_dict()))
    assert_same(results[0], results[1])


def test_a_field_that_shows_nothing_is_background_and_trains_on() -> None:
    field = scaffold()
    with torch.no_grad():
        field.opacity_network.get_parameter("2.weight").zero_()
        field.opacity_network.get_parameter("2.bias").fill_(-1)
    image = next(render_field(field, ring(1)))
    assert bool((image == 1).all())
    train_field(field, capture(), AnchorGrower(field, GrowthSchedule(0, 2, 6, 2)), steps=5)
    assert len(field) == 1


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no photographs"):
        train_field(forest(), replace(capture(), train=torch.zeros(0, dtype=torch.int64)), None, steps=1)


def test_points_are_those_of_the_capture_or_lie_where_the_cameras_see_the_scene() -> None:
    own = StartPoints(torch.rand(5, 3), torch.zeros(5, 3, dtype=torch.uint8))
    assert torch.equal(start_points(replace(capture(), points=own)), own.xyz)
    alphas = torch.stack([alpha for _, alpha in render_each(blobs(), capture().cameras)])
    opaque = start_points(capture(), 2000)
    carved = start_points(replace(capture(), alphas=(alphas * 255).round().to(torch.uint8)), 2000)
    assert len(carved) == len(opaque) == 2000
    far = torch.cdist(opaque, blobs().means).amin(dim=1).mean()
    assert float(torch.cdist(carved, blobs().means).amin(dim=1).mean()) < 0.7 * float(far), "empty space is left out"
    nearest = torch.cdist(blobs().means, carved).amin(dim=1)
    assert float(nearest.max()) < 0.3, "every blob has points"
    assert_same(start_points(capture(), 500, seed=3), start_points(capture(), 500, seed=3))


def test_both_methods_start_from_points() -> None:
    points = start_points(capture(), 300)
    assert isinstance(ScaffoldField.from_points(points), ScaffoldField)
    field = ForestField.from_points(points)
    assert len(field) == len(points) >= len(field.inner_features) >= len(field.root_features) >= 1
