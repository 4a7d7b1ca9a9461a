from __future__ import annotations

import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch

from secateur.training import FitRecord, Shuffled, cosine, fit
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.training.modules import DATA, Automatic, Growing, Manual, send

MODULES = [Automatic, Manual, Growing]


def weights(module: torch.nn.Module) -> dict[str, Any]:
    return dict(module.state_dict())


@pytest.mark.parametrize("module", MODULES)
def test_a_step_is_a_batch_however_many_optimisers_step(module: type[Automatic]) -> None:
    trained = module()
    record = fit(trained, DATA, steps=17)
    assert trained.steps_seen == list(range(17))
    assert (record.steps, record.stopped_early, record.best_step, record.validations) == (17, False, None, ())
    assert [step for step, _ in record.losses] == list(range(1, 18))


def test_no_steps_change_nothing() -> None:
    module = Automatic()
    record = fit(module, DATA, steps=0, validate_every=5, ema=0.9)
    assert record.steps == 0
    assert_same(weights(module), weights(Automatic()))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "validate_every": 4}])
def test_the_same_seed_gives_the_same_weights(module: type[Automatic], options: dict[str, Any]) -> None:
    def run() -> tuple[FitRecord, dict[str, Any]]:
        trained = module()
        return fit(trained, DATA, steps=12, **options), weights(trained)

    assert_deterministic(run)


def test_another_seed_draws_otherwise() -> None:
    assert fit(Automatic(), DATA, steps=5, seed=0).losses != fit(Automatic(), DATA, steps=5, seed=1).losses


def test_the_loss_falls_and_is_told() -> None:
    told: list[tuple[float, str]] = []
    record = fit(Manual(), DATA, steps=200, validate_every=50, report=lambda done, doing: told.append((done, doing)))
    assert record.losses[-1][1] < 0.1 * record.losses[0][1]
    assert len(record.losses) == 100
    assert [done for done, _ in told] == [step / 200 for step in range(1, 201)]
    assert told[-1][1].startswith("step 200 of 200, loss ")
    assert "score -" in told[-1][1]


class TooFast(Automatic):
    rate = 1e3


@pytest.mark.parametrize("ema", [None, 0.5])
def test_never_worse_than_at_the_start(ema: float | None) -> None:
    module = TooFast()
    record = fit(module, DATA, steps=10, validate_every=3, ema=ema)
    assert record.best_step == 0
    assert [step for step, _ in record.validations] == [0, 3, 6, 9, 10]
    assert_same(weights(module), weights(TooFast()))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("ema", [None, 0.8])
def test_ends_with_the_weights_that_scored_best(module: type[Automatic], ema: float | None) -> None:
    trained = module()
    record = fit(trained, DATA, steps=20, validate_every=3, ema=ema)
    best = max(score for _, score in record.validations)
    assert dict(record.validations)[record.best_step or 0] == best
    trained.eval()
    assert trained.validation_score() == best


def test_stops_when_patience_ends() -> None:
    module = TooFast()
    record = fit(module, DATA, steps=50, validate_every=2, patience=3)
    assert (record.steps, record.stopped_early, record.best_step) == (6, True, 0)
    assert module.steps_seen == list(range(6))
    assert record.losses[-1][0] == 6


def test_small_gains_are_kept_but_try_patience() -> None:
    record = fit(Manual(), DATA, steps=50, validate_every=1, patience=4, min_delta=100.0)
    assert record.steps == 4
    assert record.best_step == 4


class Unscored(Manual):
    def validation_score(self) -> float:
        return float("nan")


def test_a_score_that_is_no_number_keeps_the_start() -> None:
    module = Unscored()
    assert fit(module, DATA, steps=4, validate_every=2).best_step == 0
    assert_same(weights(module), weights(Unscored()))


def test_validation_leaves_training_as_it_was() -> None:
    without, scored = Automatic(), Automatic()
    losses = fit(without, DATA, steps=9).losses
    scored.line.eval()
    assert fit(scored, DATA, steps=9, validate_every=1).losses == losses
    assert scored.dropout.training
    assert not scored.line.training


def test_an_average_is_what_is_left_without_validation() -> None:
    raw, averaged = Manual(), Manual()
    assert fit(raw, DATA, steps=8).losses == fit(averaged, DATA, steps=8, ema=0.99).losses
    assert not torch.equal(raw.line.weight, averaged.line.weight)


class Rated(Automatic):
    def training_step(self, batch: Any, step: int) -> Any:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return super().training_step(batch, step)


def test_schedules_advance_by_steps() -> None:
    module = Rated()
    module.rates = []
    fit(module, DATA, steps=22)
    rate = cosine(3, 20)
    assert module.rates == pytest.approx([0.05 * rate(step) for step in range(22)])


def test_fits_away_from_the_main_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fit, Manual(), DATA, steps=5).result() == fit(Manual(), DATA, steps=5)


class Counting(lightning.Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch_idx)
        trainer.should_stop = batch_idx == 3


def test_further_callbacks_may_stop_it() -> None:
    counting = Counting()
    record = fit(Automatic(), DATA, steps=9, callbacks=[counting], validate_every=2)
    assert counting.seen == [0, 1, 2, 3]
    assert (record.steps, record.stopped_early) == (4, True)


def test_clips_the_gradient() -> None:
    free, clipped = Automatic(), Automatic()
    fit(free, DATA, steps=1, clip_norm=None)
    fit(clipped, DATA, steps=1, clip_norm=1e-12)
    moved = [float((module.line.weight.detach() - 0.1).abs().max()) for module in (free, clipped)]
    assert moved[1] < 0.1 * moved[0]


def test_workers_make_the_same_batches() -> None:
    assert fit(Automatic(), DATA, steps=5, workers=1) == fit(Automatic(), DATA, steps=5)


def test_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    level = logging.getLogger("lightning.pytorch").level
    module = Automatic()
    with torch.no_grad():
        fit(module, DATA, steps=3, validate_every=1, ema=0.9)
        assert not torch.is_grad_enabled()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert logging.getLogger("lightning.pytorch").level == level
    assert all(parameter.grad is None for parameter in module.parameters())
    with pytest.raises(RuntimeError, match="not attached"):
        _ = module.trainer


def test_without_a_checkpoint_a_signal_stops_between_steps() -> None:
    module = Automatic(send(signal.SIGTERM, at=2))
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(module, DATA, steps=9)
    assert stopped.value.args == ()
    assert module.steps_seen == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_strikes_at_once() -> None:
    def twice(step: int) -> None:
        for _ in range(2):
            send(signal.SIGINT, at=1)(step)
        module.reached.append(step)

    module = Automatic(twice)
    module.reached = []
    with pytest.raises(KeyboardInterrupt):
        fit(module, DATA, steps=9)
    assert module.reached == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Silent(Manual):
    def training_step(self, batch: Any, step: int) -> Any:
        return None


class Diverging(Manual):
    def training_step(self, batch: Any, step: int) -> Any:
        return super().training_step(batch, step) * (float("nan") if step == 3 else 1.0)


class Unscorable(lightning.LightningModule):
    """Has nothing to say how good it is."""


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Automatic, {"steps": -1}, "steps must be at least 0, got -1"),
        (Automatic, {"steps": 1, "patience": 2}, "give validate_every"),
        (Automatic, {"steps": 1, "validate_every": 0}, "validate_every must be at least 1"),
        (Automatic, {"steps": 1, "validate_every": 1, "patience": 0}, "patience must be at least 1"),
        (Automatic, {"steps": 1, "ema": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        (Automatic, {"steps": 1, "identity": {"scene": DATA}}, "identity must hold"),
        (Manual, {"steps": 1, "clip_norm": 1.0}, "Manual optimises by hand"),
        (Automatic, {"steps": 1, "accumulate": 0}, "accumulate must be at least 1, got 0"),
        (Manual, {"steps": 1, "accumulate": 2}, "Manual optimises by hand, so it accumulates by hand"),
        (Unscorable, {"steps": 1, "validate_every": 1}, r"needs a module with validation_score\(\)"),
        (Silent, {"steps": 1}, "Silent.training_step must return its loss"),
        (Diverging, {"steps": 9}, "loss became nan by step 4"),
    ],
)
def test_says_what_is_wrong(module: type[Automatic], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(module(), DATA, **options)


class Still(Automatic):
    """Without dropout: what a step does depends on its samples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Identity()  # type: ignore[assignment]


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_small_batches_together_are_a_large_one(clip_norm: float | None) -> None:
    options: dict[str, Any] = {"steps": 12, "ema": 0.9, "validate_every": 4, "clip_norm": clip_norm}
    large, small = Still(), Still()
    whole = fit(large, Shuffled(30, 12, seed=3), **options)
    record = fit(small, DATA, accumulate=3, **options)
    assert small.steps_seen == list(range(36))
    assert_near(small.state_dict(), large.state_dict(), 1e-6)
    assert record.steps == 12 and record.best_step == whole.best_step
    for ours, theirs in ((record.losses, whole.losses), (record.validations, whole.validations)):
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], abs=1e-6)


def test_schedules_advance_by_steps_of_several_batches() -> None:
    module = Rated()
    module.rates = []
    fit(module, DATA, steps=6, accumulate=2)
    rate = cosine(3, 20)
    assert module.rates == pytest.approx([0.05 * rate(step // 2) for step in range(12)])


def test_progress_is_told_within_a_step() -> None:
    told: list[float] = []
    fit(Automatic(), DATA, steps=2, accumulate=2, report=lambda done, _: told.append(done))
    assert told == [0.25, 0.5, 0.75, 1.0]


def assert_near(state: dict[str, Any], other: dict[str, Any], error: float) -> None:
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=error)


@pytest.mark.gpu
def test_stays_on_its_device() -> None:
    device = torch.device("cuda", 0)

    class OnDevice(Manual):
        def error(self, indices: torch.Tensor) -> torch.Tensor:
            return self.line(torch.ones(len(indices), 6, device=self.device)).square().mean()

    module = OnDevice().to(device)
    before = torch.cuda.get_rng_state(device)
    record = fit(module, DATA, steps=6, validate_every=2, ema=0.9)
    assert record.steps == 6
    assert module.line.weight.device == device
    assert torch.equal(before, torch.cuda.get_rng_state(device))
