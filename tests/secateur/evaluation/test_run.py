"""What was run, and on what."""

import re
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from secateur.evaluation.naming import distinct_names
from secateur.evaluation.run import Start, command_line, hash_path, typed
from secateur.report.record import describe_machine


def test_the_command_line_is_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bench.py", "--fast", "a b"])
    assert command_line() == "bench.py --fast 'a b'"
    with typed(["evaluate", "a b.ply", "-o", "x"]):
        assert command_line() == "secateur evaluate 'a b.ply' -o x"
    assert command_line().startswith("bench.py")


def test_a_run_says_when_and_where() -> None:
    start = Start.now()
    run = start.run({"judge": 2.0}, ("secateur", "torch", "no such package"), {"views": 3}, threads=1)
    assert abs(datetime.fromisoformat(run.started_at) - datetime.now(UTC)) < timedelta(minutes=1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", run.started_at)
    assert run.machine == describe_machine()
    assert run.versions.keys() == {"python", "torch"}
    assert (run.threads, run.seeds, run.seconds) == (1, {"views": 3}, {"judge": 2.0})
    assert start.run({}, (), {}).threads == torch.get_num_threads()


def test_a_hash_is_of_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "one").write_bytes(b"1")
    (folder / "meta.json").write_bytes(b"2")
    before = hash_path(folder)
    shutil.copytree(folder, tmp_path / "b")
    assert hash_path(tmp_path / "b") == before == hash_path(folder / "meta.json")
    (folder / "in" / "one").rename(folder / "in" / "two")
    renamed = hash_path(folder)
    (folder / "in" / "two").write_bytes(b"3")
    assert len({before, renamed, hash_path(folder), hash_path(folder / "in" / "two")}) == 4
    with pytest.raises(FileNotFoundError):
        hash_path(tmp_path / "gone")


@pytest.mark.parametrize(
    ("names", "paths", "expected"),
    [
        (["a", "b"], ["x/a", "x/b"], ["a", "b"]),
        (["a", "a", "b"], ["x/a", "y/a", "x/b"], ["x/a", "y/a", "b"]),
        (["a", "a"], ["x/a", "x/a"], ["x/a", "x/a (2)"]),
        (["dense"], ["x/dense"], ["dense (candidate)"]),
    ],
)
def test_no_two_subjects_have_one_name(names: list[str], paths: list[str], expected: list[str]) -> None:
    assert distinct_names(names, paths, {"dense"}) == expected
