from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.training import FitRecord, fit
from tests.contracts import assert_same
from tests.secateur.training.modules import DATA, Automatic, Growing, Manual, Strike, nothing, send

MODULES = [Automatic, Manual, Growing]
STEPS = 20
OPTIONS: list[dict[str, Any]] = [{}, {"ema": 0.9, "validate_every": 3, "patience": 50, "min_delta": 1e-3}]


def run(
    module: type[Automatic], strike: Strike = nothing, resume: bool = True, **options: Any
) -> tuple[FitRecord, dict[str, Any], list[int]]:
    trained = module(strike)
    record = fit(trained, DATA, steps=STEPS, resume=resume, **options)
    return record, dict(trained.state_dict()), trained.steps_seen


def struck(at: int) -> Strike:
    def strike(step: int) -> None:
        if step == at:
            raise KeyboardInterrupt

    return strike


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_goes_on_after_a_signal(
    module: type[Automatic], options: dict[str, Any], number: signal.Signals, tmp_path: Path
) -> None:
    path = tmp_path / "run.ckpt"
    for at in (0, 7, 12):
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {at + 1} of 20, saved in .*run.ckpt: resume"):
            run(module, send(number, at), checkpoint=path, **options)
    record, weights, steps = run(module, checkpoint=path, **options)
    whole = run(module, **options)
    assert steps == list(range(13, STEPS))
    assert record == whole[0]
    assert_same(weights, whole[1])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("options", OPTIONS)
def test_goes_on_after_a_step_that_was_struck_down(
    module: type[Automatic], options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt, match=r"written before: .*run.ckpt"):
        run(module, struck(11), checkpoint=path, checkpoint_seconds=0, **options)
    record, weights, steps = run(module, checkpoint=path, **options)
    whole = run(module, **options)
    assert steps == list(range(11, STEPS))
    assert record == whole[0]
    assert_same(weights, whole[1])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("struck_batch", [20, 21, 22])
def test_goes_on_at_a_step_of_several_batches(options: dict[str, Any], struck_batch: int, tmp_path: Path) -> None:
    options, path = {**options, "accumulate": 3}, tmp_path / "run.ckpt"
    done = struck_batch // 3 + 1
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {done} of 20"):
        run(Automatic, send(signal.SIGINT, struck_batch), checkpoint=path, **options)
    record, weights, batches = run(Automatic, checkpoint=path, **options)
    whole = run(Automatic, **options)
    assert batches == list(range(3 * done, 3 * STEPS))
    assert record == whole[0]
    assert_same(weights, whole[1])


def test_no_checkpoint_holds_half_a_step(tmp_path: Path) -> None:
    path, options = tmp_path / "run.ckpt", {"accumulate": 4, "ema": 0.9}
    with pytest.raises(KeyboardInterrupt):
        run(Automatic, struck(30), checkpoint=path, checkpoint_seconds=0, **options)
    record, weights, batches = run(Automatic, checkpoint=path, **options)
    assert batches == list(range(28, 4 * STEPS))
    whole = run(Automatic, **options)
    assert record == whole[0]
    assert_same(weights, whole[1])


KILLED = """
import os, signal, sys
from pathlib import Path
from secateur.training import fit
from tests.secateur.training.modules import DATA, Growing, send
fit(Growing(send(signal.SIGKILL, at=13)), DATA, steps=20, checkpoint=Path(sys.argv[1]), checkpoint_seconds=0, ema=0.9)
"""


def test_goes_on_after_the_process_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    root = Path(__file__).parents[3]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=root, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    record, weights, steps = run(Growing, checkpoint=path, ema=0.9)
    whole = run(Growing, ema=0.9)
    assert steps == list(range(13, STEPS))
    assert record == whole[0]
    assert_same(weights, whole[1])


def test_patience_is_remembered(tmp_path: Path) -> None:
    options = {"validate_every": 2, "patience": 3, "min_delta": 100.0}
    with pytest.raises(KeyboardInterrupt):
        run(Manual, send(signal.SIGINT, 4), checkpoint=tmp_path / "run.ckpt", **options)
    record, *_ = run(Manual, checkpoint=tmp_path / "run.ckpt", **options)
    assert record == run(Manual, **options)[0]
    assert (record.steps, record.stopped_early) == (6, True)


@pytest.mark.parametrize("module", MODULES)
def test_a_run_that_has_ended_is_not_run_again(module: type[Automatic], tmp_path: Path) -> None:
    options = {"checkpoint": tmp_path / "run.ckpt", "validate_every": 3, "ema": 0.9}
    first = run(module, **options)
    again = run(module, **options)
    assert again[0] == first[0]
    assert again[0].seconds == first[0].seconds
    assert_same(again[1], first[1])
    assert again[2] == []
    assert run(module, resume=False, **options)[2] == list(range(STEPS))


def test_a_signal_in_the_last_step_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt, match="stopped after step 20 of 20"):
        run(Manual, send(signal.SIGTERM, STEPS - 1), checkpoint=path)
    assert_same(run(Manual, checkpoint=path)[1], run(Manual)[1])


def test_ctrl_c_before_the_first_checkpoint_names_none(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(Manual, struck(3), checkpoint=tmp_path / "run.ckpt")
    assert stopped.value.args == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"ema": 0.5}, "ema was None and is 0.5"),
        ({"identity": {"keep": 0.1}}, "keep was 0.25 and is 0.1"),
        ({"identity": None}, "keep was 0.25 and is None"),
    ],
)
def test_refuses_the_checkpoint_of_another_run(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": tmp_path / "run.ckpt", "identity": {"keep": 0.25, "views": [1, 2]}}
    with pytest.raises(KeyboardInterrupt):
        run(Manual, send(signal.SIGINT, 2), **options)
    with pytest.raises(ValueError, match=rf"run.ckpt is the checkpoint of another run: {message};"):
        run(Manual, **{**options, **changed})
    with pytest.raises(ValueError, match="module was 'Manual' and is 'Automatic'"):
        run(Automatic, **options)
    with pytest.raises(ValueError, match="steps was 20 and is 21"):
        fit(Manual(), DATA, steps=21, resume=True, **options)


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("as_torch", [True, False])
def test_runs_no_code_from_a_checkpoint(as_torch: bool, tmp_path: Path) -> None:
    path, victim = tmp_path / "run.ckpt", tmp_path / "harmed"
    if as_torch:
        torch.save({"state_dict": Hostile(victim)}, path)
    else:
        path.write_bytes(pickle.dumps(Hostile(victim), protocol=2))
    with pytest.raises(ValueError, match=r"run.ckpt is no checkpoint"):
        run(Manual, checkpoint=path)
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_refuses_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run.ckpt is no checkpoint"):
        run(Manual, checkpoint=path)


def test_refuses_a_file_of_tensors_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(Manual().state_dict(), path)
    with pytest.raises(ValueError, match=r"weights.pt is no checkpoint of secateur"):
        run(Manual, checkpoint=path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    run(Manual, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"run.ckpt is no checkpoint, or a damaged one"):
        run(Manual, checkpoint=path)


class Careless(Manual):
    """Saves what could only be unpickled."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.steps_seen[-1:] == [4]:
            checkpoint["where"] = Hostile(Path("nowhere"))


def test_state_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    with pytest.raises(ValueError, match="must be tensors and plain values; it holds getattr"):
        run(Careless, checkpoint=path, checkpoint_seconds=0)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.load(path, weights_only=True)["scale"] == pytest.approx(0.99**4)
