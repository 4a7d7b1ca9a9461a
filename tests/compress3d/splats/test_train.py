from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from compress3d.captures import Capture
from compress3d.splats.densify import Adaptive, MarkovChain
from compress3d.splats.importance import Opacity
from compress3d.splats.photographs import beside_photograph, psnr_to_photograph, quality_to_photographs
from compress3d.splats.pruning import PruneAt, to_budget
from compress3d.splats.scene import SplatScene
from compress3d.splats.train import SplatTraining, Training, TrainRecord, train
from secateur.allocation import Budget
from secateur.training import fit
from tests.compress3d.splats.photographed import blobs, photographed
from tests.contracts import assert_same

QUICK = Training(
    sh_degree=1,
    start_gaussians=60,
    max_gaussians=100,
    density=Adaptive(every=10, reset_every=25, gradient=1e-5),
    resolutions=((0.0, 0.5), (0.3, 1.0)),
)


def run(training: Training = QUICK, capture: Capture | None = None, **options: Any) -> tuple[SplatScene, TrainRecord]:
    return train(capture or photographed(), training=training, **{"steps": 60, **options})


@pytest.mark.parametrize("training", [QUICK, replace(QUICK, density=MarkovChain(every=10), antialiased=True)])
def test_learns_what_the_photographs_show(training: Training) -> None:
    told: list[str] = []
    scene, record = run(training, steps=250, report=lambda done, doing: told.append(doing))
    assert record.quality is not None and record.quality.reference == "photographs"
    assert len(record.quality.psnr) == 2 and record.quality.mean_psnr > 24
    assert 60 < len(scene) <= 100 and scene.antialiased == training.antialiased and scene.sh_degree == 1
    assert record.scene.gaussians == len(scene) and record.fit.steps == 250
    assert record.watched_views == "training views" and [step for step, _ in record.watched] == [100, 200]
    assert any("PSNR" in doing and "loss" in doing and "Gaussians" in doing for doing in told)


def test_the_same_seed_trains_the_same_scene() -> None:
    before = torch.get_rng_state()
    first, second = run()[0], run()[0]
    assert_same(first.tensors(), second.tensors())
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(run(replace(QUICK, seed=1))[0].means[:5], first.means[:5])


TRAININGS = [
    QUICK,
    replace(QUICK, density=MarkovChain(every=10), sh_degree=0),
    replace(QUICK, pruning=PruneAt((0.3, 0.6), Opacity(), Budget(share=0.8))),
]


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training dies in its 44th step, with a checkpoint from before each step."""
    step_before = SplatTraining.training_step

    def step(self: SplatTraining, batch: torch.Tensor, step: int) -> torch.Tensor:
        if step == 43:
            raise RuntimeError("killed")
        return step_before(self, batch, step)

    monkeypatch.setattr(SplatTraining, "training_step", step)
    monkeypatch.setattr("compress3d.splats.train.fit", partial(fit, checkpoint_seconds=0))


@pytest.mark.parametrize("training", TRAININGS)
def test_a_killed_training_resumes_to_the_same_curve(
    training: Training, tmp_path: Path, dying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        run(training, checkpoint=path)
    monkeypatch.undo()
    whole, record = run(training)
    assert len(whole) != 60
    # The second time the run has ended already.
    for _ in range(2):
        resumed, resumed_record = run(training, checkpoint=path, resume=True)
        assert_same(whole.tensors(), resumed.tensors())
        assert record.fit == resumed_record.fit and record.watched == resumed_record.watched


def test_will_not_resume_another_training(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    run(steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="max_gaussians was 100 and is 99"):
        run(replace(QUICK, max_gaussians=99), steps=2, checkpoint=path, resume=True)


def test_pruning_leaves_what_it_was_told_to() -> None:
    scene, _ = run(replace(QUICK, pruning=to_budget(20, at=(0.2, 0.4))))
    assert len(scene) <= 20
    pruning = PruneAt((59 / 60,), Opacity(), threshold=0.1)
    grown = run(replace(QUICK, density=Adaptive(stop=0.0), pruning=pruning))[0]
    assert 1 < len(grown) < 60 and grown.peak_opacities().min() > 0.09


def test_never_looks_at_the_test_split() -> None:
    capture = photographed()
    changed = replace(capture, images=capture.images.clone())
    changed.images[capture.test] = 0
    assert_same(run(capture=capture)[0].tensors(), run(capture=changed)[0].tensors())


def test_masked_pixels_are_neither_learned_nor_judged() -> None:
    capture = photographed(alpha=False)
    masks = torch.full(capture.images.shape[:3], 255, dtype=torch.uint8)
    masks[:, :10] = 0
    spoilt = capture.images.clone()
    spoilt[:, :10] = torch.randint(0, 256, spoilt[:, :10].shape, dtype=torch.uint8)
    # Started from points, since the start takes colours from whole photographs.
    from compress3d.captures import StartPoints

    points = StartPoints(blobs().means.repeat(5, 1), torch.full((60, 3), 128, dtype=torch.uint8))
    full = replace(QUICK, resolutions=((0.0, 1.0),))
    one, other = (
        run(full, replace(capture, images=images, masks=masks, points=points))[0] for images in (capture.images, spoilt)
    )
    assert_same(one.tensors(), other.tensors())
    seen = replace(capture, masks=masks)
    image, photograph = beside_photograph(one, seen, 0)
    assert torch.equal(image[:10], photograph[:10])
    error = (image - photograph)[10:].square().mean()
    assert psnr_to_photograph(one, seen, 0) == pytest.approx(float(-10 * torch.log10(error)), abs=1e-3)
    assert quality_to_photographs(one, seen, [0]).psnr[0] == pytest.approx(psnr_to_photograph(one, seen, 0))


def test_moments_are_shares_of_the_run() -> None:
    training = Training()
    assert [training.degree_at(progress) for progress in (0.0, 0.09, 0.11, 0.21, 0.99)] == [0, 0, 1, 2, 3]
    assert [training.factor_at(progress) for progress in (0.0, 0.2, 0.5)] == [0.25, 0.5, 1.0]
    assert Training(sh_every=0).degree_at(0.0) == 3
    assert training.cap(torch.device("cpu")) == 60_000 and training.cap(torch.device("cuda")) == 1_000_000


def test_spares_views_to_watch_by_where_there_are_many() -> None:
    capture = photographed(80)
    _, record = run(capture=capture, steps=3)
    assert record.watched_views == "held-out training views" and record.options["photographs"] == 65


def test_a_capture_without_a_test_split_is_not_judged() -> None:
    capture = photographed()
    _, record = run(capture=replace(capture, test=capture.test[:0]), steps=2)
    assert record.quality is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sh_degree": 4}, "sh_degree must be 0 to 3"),
        ({"resolutions": ((0.5, 1.0),)}, "the first from 0"),
        ({"max_gaussians": 0}, "max_gaussians must be at least 1"),
        ({"dssim": 2.0}, "dssim must be between 0 and 1"),
        ({"watch_every": 0.0}, "watch_every in"),
    ],
)
def test_refuses_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**options)


def test_refuses_no_steps() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        run(steps=0)
