"""Processes take turns with timing."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from secateur.metrics import timing_turn as module
from secateur.metrics.timing_turn import lock_file, timing_turn

fcntl = pytest.importorskip("fcntl")

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
    monkeypatch.setattr(module, "lock_file", lock_file)  # the real one, which the other process has


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


def test_patience_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    with lock_file().open("w+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with timing_turn():
            pass
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[1].endswith("going on beside it")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_does_not_keep_the_turn() -> None:
    """A child that was forked in a turn has the lock's file open for as long as it lives."""
    reading, writing = os.pipe()
    with timing_turn():
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        with lock_file().open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


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
