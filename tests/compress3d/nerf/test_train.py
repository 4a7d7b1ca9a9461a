"""Training a field: it learns, repeats itself, goes on where it stopped, and looks at nothing that it is judged by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.captures import Capture, read_capture
from compress3d.nerf.bounds import box_of, visual_hull
from compress3d.nerf.evaluate import quality_to_photographs
from compress3d.nerf.rays import Box
from compress3d.nerf.train import FieldTraining, Training, fit_field, train
from secateur.console import Report
from tests.compress3d.nerf.fields import QUICK
from tests.compress3d.splats.photographed import blobs, photographed
from tests.contracts import assert_same


def test_the_box_holds_the_object() -> None:
    capture, scene = photographed(16), blobs()
    box = box_of(capture)
    inside = box.inward(scene.means)
    assert bool(((inside > 0.05) & (inside < 0.95)).all())
    assert box.side < 4


def test_without_silhouettes_there_is_room_behind_what_is_photographed() -> None:
    capture = photographed(16)
    loose, box = box_of(capture), box_of(dataclasses.replace(capture, alphas=None))
    positions = box.inward(capture.cameras.positions)
    assert box.side > 2 * loose.side and bool(((positions > 0.2) & (positions < 0.8)).all())


def test_the_hull_holds_the_object_and_little_else() -> None:
    capture, scene = photographed(16), blobs()
    box = Box((-1.8, -1.8, -1.8), 3.6)
    hull = visual_hull(capture, box, 32)
    x, y, z = (box.inward(scene.means) * 32).long().unbind(dim=1)
    assert bool(hull[z, y, x].all())
    assert float(hull.float().mean()) < 0.3
    with pytest.raises(ValueError, match="alpha"):
        visual_hull(photographed(4, alpha=False), box, 8)


def test_cameras_that_see_no_common_point_get_a_box_around_them() -> None:
    capture = photographed(4, alpha=False)
    viewmats = torch.eye(4).repeat(4, 1, 1)
    viewmats[:, 0, 3] = torch.arange(4.0)
    side_by_side = Cameras(viewmats, capture.cameras.Ks, capture.cameras.width, capture.cameras.height)
    box = box_of(dataclasses.replace(capture, cameras=side_by_side))
    inside = box.inward(side_by_side.positions)
    assert bool(((inside >= 0) & (inside <= 1)).all())


def test_training_learns_and_tells(tmp_path: Path) -> None:
    capture = photographed(16)
    told: list[tuple[float, str]] = []
    field, record = train(capture, steps=100, training=QUICK, report=lambda done, doing: told.append((done, doing)))
    assert record.quality is not None
    before = quality_to_photographs(FieldTraining(capture, QUICK, 1).field, capture, capture.test.tolist())
    assert record.quality.mean_psnr > before.mean_psnr + 3
    assert [step for step, _, _ in record.watched] == [50, 100]
    assert record.fit.losses[-1][1] < record.fit.losses[0][1] / 2
    assert 0.5 * 8192 < record.samples / 100 < 2 * 8192
    assert record.bytes == field.bytes
    assert told[-1][0] == 1.0
    assert any("PSNR" in doing for _, doing in told)


@pytest.mark.parametrize("changed", [{}, {"loss": "l2", "ema": 0.9, "cone": 0.01}])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(changed: dict[str, object], tmp_path: Path) -> None:
    training, capture = dataclasses.replace(QUICK, **changed), photographed(8)  # type: ignore[arg-type]
    whole, record = train(capture, steps=24, training=training)

    def stop(done: float, doing: str) -> None:
        if done > 0.5 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt

    stopped: list[bool] = []
    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        _train_with_checkpoints(capture, training, checkpoint, stop)
    resumed, again = train(capture, steps=24, training=training, checkpoint=checkpoint, resume=True)
    assert_same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert again.fit.losses == record.fit.losses
    assert (again.rays, again.samples) == (record.rays, record.samples)
    with pytest.raises(ValueError, match="another run"):
        train(capture, steps=25, training=training, checkpoint=checkpoint, resume=True)


def _train_with_checkpoints(capture: Capture, training: Training, checkpoint: Path, stop: Report) -> None:
    """With a checkpoint each step; a stop by the report strikes between two of them."""
    fit_field(FieldTraining(capture, training, 24), 24, checkpoint, False, stop, seconds=0.0)


def test_what_is_judged_by_is_never_looked_at() -> None:
    capture = photographed(16)
    spoiled = dataclasses.replace(capture, images=capture.images.clone(), alphas=capture.alphas.clone())  # type: ignore[union-attr]
    spoiled.images[capture.test] = 77
    spoiled.alphas[capture.test] = 255  # type: ignore[index]
    fields = [train(one, steps=4, training=QUICK)[0] for one in (capture, spoiled)]
    assert_same(dict(fields[0].state_dict()), dict(fields[1].state_dict()))


def test_masked_and_opaque_photographs_train() -> None:
    opaque = photographed(8, alpha=False)
    masks = torch.full(opaque.images.shape[:3], 255, dtype=torch.uint8)
    masks[:, :12] = 0
    masked = dataclasses.replace(opaque, masks=masks)
    spoiled = dataclasses.replace(masked, images=opaque.images.clone())
    spoiled.images[:, :12] = 200
    fields = [train(one, steps=4, training=QUICK)[0] for one in (masked, spoiled)]
    assert_same(dict(fields[0].state_dict()), dict(fields[1].state_dict()))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 1}, "samples"),
        ({"rate": 0.0}, "rate"),
        ({"loss": "l3"}, "loss"),
        ({"steps_across": 3}, "steps_across"),
        ({"watch_every": 0.0}, "watch_every"),
    ],
)
def test_options_out_of_range_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**changed)  # type: ignore[arg-type]


def test_nothing_to_train_on_is_refused() -> None:
    capture = photographed(8)
    with pytest.raises(ValueError, match="no photographs to train on"):
        train(dataclasses.replace(capture, train=torch.zeros(0, dtype=torch.int64)), steps=3, training=QUICK)
    with pytest.raises(ValueError, match="steps"):
        train(capture, steps=0, training=QUICK)


def test_the_chair_is_found(shared_data: Path) -> None:
    folder = shared_data / "nerf_synthetic" / "chair"
    if not folder.is_dir():
        pytest.skip(f"no chair: {folder} is absent")
    capture = read_capture(folder, long_side=100)
    box = box_of(capture.subset(capture.train[::5]))
    assert 1.8 < box.side < 2.6
