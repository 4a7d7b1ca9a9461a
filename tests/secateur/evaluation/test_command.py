"""`secateur evaluate`: measuring, merging, comparing, and how it ends."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest

import secateur.cli
from secateur.cli import main
from secateur.evaluation.evaluator import Evaluated
from secateur.evaluation.measurements import counted
from secateur.evaluation.record import EvaluationRecord, Subject
from secateur.evaluation.run import Start, hash_path
from secateur.evaluation.schema import record_schema
from secateur.report.page import Page, Result

Run = Callable[[str], int]


class Texts:
    """Evaluates text files by their length."""

    options: ClassVar = {"--twice": {"action": "store_true"}}

    def accepts(self, path: Path) -> bool:
        return path.suffix == ".txt"

    def run(self, reference: Path, candidates: list[Path], output: Path, twice: bool) -> Evaluated:
        start, factor = Start.now(), 2 if twice else 1

        def subject(path: Path) -> Subject:
            size = counted(factor * path.stat().st_size, "bytes", "length")
            return Subject(path.stem, str(path), hash_path(path), 0, {"size": size})

        made = EvaluationRecord(
            kind="text",
            runs=(start.run({"read": 0.0}, ("secateur",), {}),),
            protocol={"twice": twice},
            reference=subject(reference),
            candidates=tuple(map(subject, candidates)),
        )
        return Evaluated(made, Page("texts", "", "", (), tuple(Result(one.name) for one in made.candidates)))


class Pictures(Texts):
    """Evaluates nothing here, and has flags of its own."""

    options: ClassVar = {
        "--width": {"type": int, "default": 16},
        "--judge": {"choices": ("a", "b")},
        "--twice": {"action": "store_true"},
    }

    def accepts(self, path: Path) -> bool:
        return False


@dataclass(frozen=True)
class Entry:
    """An entry point that is not installed."""

    name: str
    target: Any
    value: str = "here"

    def load(self) -> Any:
        return self.target


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`secateur` in a folder with three texts."""
    found = {"secateur.commands": [], "secateur.evaluators": [Entry("text", Texts()), Entry("pictures", Pictures())]}
    monkeypatch.setattr(secateur.cli, "entry_points", lambda group: found[group])
    monkeypatch.chdir(tmp_path)
    for name, length in (("whole", 100), ("half", 50), ("third", 33)):
        Path(f"{name}.txt").write_text("x" * length)
    return lambda line: main(line.split())


def written(folder: str) -> dict[str, Any]:
    record = json.loads((Path(folder) / "results.json").read_text())
    jsonschema.validate(record, record_schema())
    return record


def test_a_run_is_written_shown_and_printed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate whole.txt half.txt third.txt -o report") == 0
    shown = capsys.readouterr().out
    assert "half" in shown and "third" in shown and "33 B" in shown
    made = written("report")
    assert made["runs"][0]["command"] == "secateur evaluate whole.txt half.txt third.txt -o report"
    assert Path("report/index.html").is_file()
    assert run("evaluate whole.txt half.txt -o report --json --twice") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == written("report") and printed["protocol"] == {"twice": True}


def test_runs_merge_into_one(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate whole.txt half.txt -o one") == run("evaluate whole.txt third.txt -o two") == 0
    capsys.readouterr()
    assert run("evaluate --merge one two/results.json -o both") == 0
    assert "half" in capsys.readouterr().out
    both = written("both")
    assert [one["name"] for one in both["candidates"]] == ["half", "third"] and len(both["runs"]) == 2
    page = Path("both/index.html").read_text(encoding="utf-8")
    assert "half" in page and "third" in page
    assert run("evaluate --merge both one -o again") == 0
    assert [one["name"] for one in written("again")["candidates"]] == ["half", "third"]


@pytest.mark.parametrize("mode", ["", "--merge "])
def test_what_got_worse_is_said_and_may_fail(run: Run, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate whole.txt half.txt third.txt -o old") == 0
    Path("half.txt").write_text("x" * 60)
    Path("third.txt").write_text("x" * 30)
    again = "evaluate whole.txt half.txt third.txt"
    if mode:
        assert run(f"{again} -o new") == 0
        again = "evaluate --merge new"
    capsys.readouterr()
    assert run(f"{again} -o now --compare old") == 0
    shown = capsys.readouterr().out
    assert "worse" in shown and "better" in shown and "1 of 3 within noise" in shown
    changes = {one["subject"]: one["verdict"] for one in written("now")["comparison"]["changes"]}
    assert changes == {"whole": "within noise", "half": "worse", "third": "better"}
    assert "What has changed" in Path("now/index.html").read_text(encoding="utf-8")
    assert run(f"{again} -o now --compare old/results.json --fail-on-worse") == 1
    assert run(f"{again} -o now --compare now --fail-on-worse") == 0
    assert {one["verdict"] for one in written("now")["comparison"]["changes"]} == {"within noise"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("evaluate whole.txt -o x", ["missing: candidates"]),
        ("evaluate whole.txt half.txt -o x --compare gone", ["gone", "no such file"]),
        ("evaluate whole.txt half.txt -o x --compare half.txt", ["half.txt: no JSON"]),
        ("evaluate whole.txt half.txt -o x --fail-on-worse", ["give an older record with --compare"]),
        ("evaluate whole.txt half.txt -o whole.txt", ["whole.txt cannot be a folder"]),
        ("evaluate --merge whole.txt -o x", ["whole.txt: no JSON"]),
        ("evaluate --merge gone -o x", ["gone: no such file"]),
        (
            "evaluate whole.txt half.txt -o x --width 8",
            ["--width belongs to an evaluation of pictures, this is one of text"],
        ),
        ("evaluate whole.txt half.txt -o x --judge a --twice", ["--judge belongs to an evaluation of pictures"]),
        ("evaluate whole.txt half.txt -o x --merge --twice", ["--twice belongs to an evaluation of", "--merge"]),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(
    run: Run, line: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words)
    assert not Path("x").exists()


def test_runs_with_other_references_do_not_merge(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate whole.txt half.txt -o one") == run("evaluate half.txt third.txt -o two") == 0
    assert run("evaluate --merge one two -o both") == 2
    assert "two has another reference (half) than one (whole)" in capsys.readouterr().err
