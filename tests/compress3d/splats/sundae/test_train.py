"""Joint training: the head wins something, nothing is ever lost, and both PSNRs are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress3d.splats.compensation import CompensationHead, FeatureHead, GainUNet
from compress3d.splats.pictures import Renders
from compress3d.splats.pruning import spectral_selection
from compress3d.splats.scene import GAUSSIANS
from compress3d.splats.sundae import Compensate, CompensatedScene, psnr_both, spectral_cut
from secateur.allocation import Budget, allocate
from tests.compress3d.splats.photographed import blobs, photographed
from tests.compress3d.splats.sundae.scenes import ORIGINAL, VIEWS, stirred
from tests.contracts import assert_deterministic, assert_same

LEARNT, HELD_OUT = Renders.of(ORIGINAL, VIEWS[:6]), Renders.of(ORIGINAL, VIEWS[6:])
HEADS = pytest.mark.parametrize("head", [FeatureHead(3, 6), GainUNet(2)], ids=lambda head: head.name)


def start(head: CompensationHead, keep: float = 0.2) -> CompensatedScene:
    return CompensatedScene.start(spectral_cut(ORIGINAL, keep), head)


@HEADS
def test_training_gains_and_tells_both(head: CompensationHead) -> None:
    made, record = Compensate(steps=100)(start(head), [LEARNT], HELD_OUT)
    assert record.before is not None and record.after is not None
    assert record.before.with_head == record.before.without_head
    assert record.after == psnr_both(made, HELD_OUT)
    assert record.after.with_head > record.before.with_head + 1
    assert record.after.with_head != record.after.without_head


def test_the_feature_head_shows_more_than_the_scene_alone() -> None:
    _, record = Compensate(steps=150)(start(FeatureHead(4, 8), keep=0.1), [LEARNT], HELD_OUT)
    assert record.after is not None
    assert record.after.with_head > record.after.without_head + 0.5


def test_it_is_deterministic_and_leaves_its_start_alone() -> None:
    begun = stirred()
    before = {name: tensor.clone() for name, tensor in {**begun.tensors(), **begun.head.state_dict()}.items()}

    def state() -> dict[str, torch.Tensor]:
        made, _ = Compensate(steps=6)(begun, [LEARNT])
        return {**made.tensors(), **made.head.state_dict()}

    assert_deterministic(state)
    assert_same(before, {**begun.tensors(), **begun.head.state_dict()})


def test_no_steps_change_nothing() -> None:
    begun = stirred()
    made, record = Compensate(steps=0)(begun, [LEARNT])
    assert_same(dict(begun.tensors()), dict(made.tensors()))
    assert_same(dict(begun.head.state_dict()), dict(made.head.state_dict()))
    assert record.before is None and record.after is None


def test_it_never_ends_worse_than_it_began() -> None:
    begun = CompensatedScene.start(ORIGINAL, FeatureHead(2, 4))
    made, record = Compensate(steps=4, head_rate=10.0)(begun, [LEARNT], HELD_OUT)
    assert record.fit.best_step == 0
    assert_same(dict(begun.tensors()), dict(made.tensors()))


def test_all_weight_on_the_scene_leaves_the_head_alone() -> None:
    made, _ = Compensate(steps=3, without_head=1.0)(start(FeatureHead(2, 4)), [LEARNT])
    assert_same(dict(FeatureHead(2, 4).state_dict()), dict(made.head.state_dict()))
    assert not torch.equal(made.scene.means, start(FeatureHead(2, 4)).scene.means)


def test_photographs_do_as_well() -> None:
    capture = photographed(10)
    learnt, held_out = capture.subset(capture.train), capture.subset(capture.test)
    begun = CompensatedScene.start(spectral_cut(blobs(), 6), FeatureHead(2, 4))
    _, record = Compensate(steps=40)(begun, [learnt], held_out)
    assert record.before is not None and record.after is not None
    assert record.after.with_head > record.before.with_head


def test_a_stopped_training_goes_on_where_it_was(tmp_path: Path) -> None:
    compensate, file = Compensate(steps=8), tmp_path / "sundae.ckpt"
    whole, record = compensate(start(FeatureHead(2, 4)), [LEARNT], HELD_OUT)

    def strike(done: float, said: str) -> None:
        if done > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compensate(start(FeatureHead(2, 4)), [LEARNT], HELD_OUT, checkpoint=file, report=strike)
    again, resumed = compensate(start(FeatureHead(2, 4)), [LEARNT], HELD_OUT, checkpoint=file, resume=True)
    assert_same(dict(whole.tensors()), dict(again.tensors()))
    assert_same(dict(whole.head.state_dict()), dict(again.head.state_dict()))
    assert record.fit.losses == resumed.fit.losses
    with pytest.raises(ValueError, match="width"):
        compensate(start(FeatureHead(2, 5)), [LEARNT], HELD_OUT, checkpoint=file, resume=True)


def test_masked_pixels_do_not_count() -> None:
    class Half(Renders):
        def mask(self, index: int) -> torch.Tensor:  # type: ignore[override]
            return (torch.arange(self.cameras.width) < 20).float().expand(self.cameras.height, -1)

    wrong = HELD_OUT.colors.clone()
    wrong[:, :, 20:] = 0.3
    begun = stirred()
    true = psnr_both(begun, Half(HELD_OUT.cameras, HELD_OUT.colors, HELD_OUT.alphas))
    assert psnr_both(begun, Half(HELD_OUT.cameras, wrong, HELD_OUT.alphas)) == true


def test_the_one_shot_pruning_is_spectral() -> None:
    scores = spectral_selection(0.3).score(ORIGINAL)
    keep = allocate(scores, ORIGINAL.groups(), Budget(limit=40))
    assert_same(dict(ORIGINAL.cut(keep).tensors()), dict(spectral_cut(ORIGINAL, 40, gamma=0.3).tensors()))
    assert len(spectral_cut(ORIGINAL, 0.2)) == 30
    assert_same(dict(ORIGINAL.tensors()), dict(spectral_cut(ORIGINAL, 1.0).tensors()))
    assert int(keep[GAUSSIANS].sum()) == 40


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        Compensate(steps=1)(stirred(), [])
    with pytest.raises(ValueError, match="without_head"):
        Compensate(without_head=1.5)
    with pytest.raises(ValueError, match="no pictures"):
        psnr_both(stirred(), Renders.of(ORIGINAL, VIEWS[:0]))
