"""Compressing a field: the budget is met, nothing else changes, what is read rarely goes, and training wins back."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from compress3d.nerf.compress import compress, keep_best, score_rows
from compress3d.nerf.field import Field
from compress3d.nerf.files import load_field, save_field
from compress3d.nerf.importance import VisitedMagnitude
from compress3d.nerf.recover import recover
from compress3d.nerf.render import render
from compress3d.nerf.rounding import rounding_for
from compress3d.nerf.teacher import OWN_RENDERS, teacher_capture, views_around
from compress3d.nerf.train import train
from compress3d.nerf.units import LEVELS, ROWS
from secateur.allocation import Budget
from tests.compress3d.nerf.fields import QUICK, some_field
from tests.compress3d.splats.photographed import around, photographed
from tests.contracts import assert_deterministic, assert_exact_budget, assert_same, assert_scores_fit

FEW = VisitedMagnitude(rays=200, batches=2)


@pytest.fixture(scope="module")
def trained() -> Field:
    return train(photographed(16), steps=100, training=QUICK)[0]


def test_a_full_budget_changes_nothing() -> None:
    field = some_field()
    small, rounding, record = compress(field, photographed(8), keep=1.0, bits=None, worth="visits", steps=0)
    assert rounding is None
    assert_same(dict(small.state_dict()), dict(field.state_dict()))
    assert record.before == record.cut == record.after
    assert record.rows[0] == record.rows[1]


@pytest.mark.parametrize("worth", ["fisher", "visits"])
def test_compressed_is_small_close_and_the_same_after_loading(worth: str, trained: Field, tmp_path: Path) -> None:
    capture, weights = photographed(16), {name: one.clone() for name, one in trained.state_dict().items()}
    small, rounding, record = compress(
        trained, capture, keep=0.25, bits=6, worth=worth, steps=40, training=QUICK  # type: ignore[arg-type]
    )  # fmt: skip
    assert_same(dict(trained.state_dict()), weights)
    assert len(small.table) == len(trained.table) // 4
    assert_same(small.occupancy.bits, trained.occupancy.bits)
    assert record.before is not None
    assert record.cut is not None
    assert record.after is not None
    assert record.after.mean_psnr > record.cut.mean_psnr
    assert record.after.mean_psnr > record.before.mean_psnr - 1.5
    path = tmp_path / "field.safetensors"
    assert save_field(small, path, rounding) < record.bytes_before / 4
    assert_same(list(render(load_field(path), around(1), 0)), list(render(small, around(1), 0)))


def test_visits_score_every_unit_and_count_trilinear_weights() -> None:
    field, capture = some_field(), photographed(4)
    scores = assert_deterministic(partial(FEW.score, field, capture))
    assert_scores_fit(scores, field.groups())
    visits = FEW.visits(field, capture)
    by_level = torch.stack([part.sum() for part in visits.split([level.rows for level in field.levels])])
    assert float(by_level[0]) > 0
    torch.testing.assert_close(by_level, by_level[:1].expand(4), rtol=1e-4, atol=0)
    field.occupancy.bits.zero_()
    assert not FEW.visits(field, capture).any()
    with pytest.raises(ValueError, match="needs a Capture"):
        FEW.score(field)


def test_rows_that_are_never_read_go_first() -> None:
    field, capture = some_field(), photographed(4)
    field.occupancy.bits.zero_()
    field.occupancy.bits[len(field.occupancy.bits) // 2] = 255
    scores = FEW.score(field, capture)
    read = int((scores[ROWS] > 0).sum())
    assert 0 < read < len(field.table) // 2
    kept = keep_best(field, scores, read)
    assert bool((scores[ROWS] > 0).equal(kept[ROWS]))


@pytest.mark.parametrize("keep", [1, 100, 0.1, 0.5, 1.0])
def test_the_budget_of_rows_is_exact(keep: float | int) -> None:
    field = some_field()
    kept = keep_best(field, score_rows(field, photographed(4), "visits"), keep)
    rows = next(group for group in field.groups() if group.name == ROWS)
    budget = Budget(share=keep) if isinstance(keep, float) else Budget(limit=keep)
    assert_exact_budget({ROWS: kept[ROWS]}, [rows], budget)


def test_levels_go_with_their_rows() -> None:
    field = some_field()
    small, _, record = compress(field, photographed(8), keep=0.9, levels=2, worth="visits", steps=0)
    assert len(small.levels) == 2
    assert record.levels == (4, 2)
    kept = keep_best(field, score_rows(field, photographed(4), "visits"), 0.9, 2)
    assert int(kept[LEVELS].sum()) == 2
    assert small.features(torch.rand(5, 3)).shape == (5, 4)


def test_recovery_ends_rounded_and_without_steps_only_rounds() -> None:
    for steps in (0, 3):
        field = some_field()
        rounding, before = rounding_for(field, 4), field.table.detach().clone()
        recover(field, photographed(8), steps, rounding=rounding, training=QUICK)
        assert_same(field.table.detach(), rounding.values(rounding.codes(field.table)))
        assert bool(field.table.detach().equal(rounding.values(rounding.codes(before)))) == (steps == 0)


def test_steps_through_a_rounding_add_up() -> None:
    """Where rounding is so coarse that no single step crosses a boundary, many do."""
    field = some_field()
    rounding, capture = rounding_for(field, 2), photographed(8)
    start = rounding.codes(field.table)
    recover(field, capture, 60, rounding=rounding, training=QUICK)
    assert int((rounding.codes(field.table) != start).sum()) > 0


def test_without_photographs_the_field_is_its_own_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    import compress3d.nerf.compress as module

    monkeypatch.setattr(module, "_TEACHER_SIZE", 16)
    monkeypatch.setattr(module, "_TEACHER_VIEWS", 8)
    _, _, record = compress(some_field(), keep=1.0, bits=None, worth="visits", steps=0)
    assert record.capture == OWN_RENDERS
    assert record.after is not None
    assert record.after.reference == OWN_RENDERS
    assert record.after.mean_psnr > 45


def test_a_teacher_shows_what_the_field_shows() -> None:
    field = some_field()
    cameras = views_around(field.box, 10, 12)
    capture = teacher_capture(field, cameras)
    assert len(capture.test) == 1
    assert len(capture.train) == 9
    picture = render(field, cameras, 3, (0.2, 0.4, 0.6)).image.clamp(0, 1)
    torch.testing.assert_close(capture.image(3, (0.2, 0.4, 0.6)), picture, rtol=0, atol=0.01)
    middle = torch.tensor(field.box.low) + field.box.side / 2
    distances = (cameras.positions - middle).norm(dim=1)
    torch.testing.assert_close(distances, torch.full((10,), 1.7 * field.box.side), rtol=1e-4, atol=0)
    assert float(cameras.positions.mean(dim=0).sub(middle).norm()) < 0.2 * field.box.side
    for up in ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0)):
        assert bool(torch.isfinite(views_around(field.box, 1, 4, up).viewmats).all())
    with pytest.raises(ValueError, match="at least 1"):
        views_around(field.box, 0, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep must be"),
        ({"keep": 1.5}, "keep must be"),
        ({"levels": 5}, "levels must be 1 to 4"),
        ({"bits": (8, 8)}, "one for each of 4 levels"),
        ({"worth": "chance"}, "worth must be"),
        ({"steps": -1}, "steps must be"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(some_field(), photographed(4), **options)  # type: ignore[arg-type]


def test_a_compression_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    capture, field, checkpoint = photographed(8), some_field(), tmp_path / "run.ckpt"
    small = partial(compress, field, capture, keep=0.5, bits=6, worth="visits", steps=8, training=QUICK)
    whole, rounding, _ = small()

    def stop(done: float, doing: str) -> None:
        if "step 4" in doing and not stopped:
            stopped.append(doing)
            signal.raise_signal(signal.SIGTERM)

    stopped: list[str] = []
    with pytest.raises(KeyboardInterrupt, match="saved in"):
        small(checkpoint=checkpoint, report=stop)
    resumed, again, record = small(checkpoint=checkpoint, resume=True)
    assert stopped and record.fit.steps == 8
    assert_same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert rounding is not None and again is not None
    assert_same([rounding.lows, rounding.steps], [again.lows, again.steps])
    for changed, what in (({"bits": 4}, "bits"), ({"keep": 0.6}, "start")):
        with pytest.raises(ValueError, match=f"another run: {what}"):
            small(**changed, checkpoint=checkpoint, resume=True)
