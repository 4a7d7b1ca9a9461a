"""Processes take turns with timing."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from secateur.metrics import timing_turn as module
from secateur.metrics.timing_turn import lock_file, timing_turn

pytest.importorskip("fcntl")

HOLD = """
import sys
from secateur.metrics.timing_turn import timing_turn
with timing_turn():
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of temporary files of this test's own: other tests time, too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def test_another_process_waits_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "mine\n"
        entered: list[float] = []

        def enter() -> None:
            with timing_turn():
                entered.append(time.monotonic())

        waiting = threading.Thread(target=enter)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not entered
        holder.stdin.close()
        waiting.join(60)
        assert entered
    assert capsys.readouterr().err == "waiting: another process is timing on this machine\n"


def test_turns_within_a_turn_are_free(capsys: pytest.CaptureFixture[str]) -> None:
    with timing_turn(), timing_turn():
        assert lock_file().is_file()
    with timing_turn():
        pass
    assert capsys.readouterr().err == ""


def test_a_turn_ends_with_an_error() -> None:
    with pytest.raises(RuntimeError), timing_turn():
        raise RuntimeError
    with timing_turn():
        assert module._depth == 1
    assert module._depth == 0


def test_without_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_file().mkdir()  # cannot be opened to write
    with timing_turn():
        pass
    monkeypatch.setattr(module, "fcntl", None)
    with timing_turn():
        pass
