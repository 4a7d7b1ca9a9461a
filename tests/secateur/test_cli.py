import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from jsonargparse import ArgumentParser

import secateur.cli
from secateur.cli import Command, CommandGroup, argument_type, main
from secateur.evaluation.evaluator import Evaluated
from secateur.evaluation.measurements import counted
from secateur.evaluation.record import EvaluationRecord, Subject
from secateur.evaluation.run import Start
from secateur.quantities import parse_keep
from secateur.report.page import Page, Result


@dataclass(frozen=True)
class Record:
    """What the made-up command returns."""

    file: Path
    keep: float
    worst: float = math.inf


@dataclass(frozen=True)
class Entry:
    """An entry point that is not installed."""

    name: str
    target: Any
    value: str = "somewhere:thing"

    def load(self) -> Any:
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


class Fruit:
    """An evaluator of files named after fruit."""

    options: ClassVar = {"--ripeness": {"type": int, "default": 3}}

    def accepts(self, path: Path) -> bool:
        return path.suffix == ".fruit"

    def run(self, reference: Path, candidates: list[Path], output: Path, ripeness: int) -> Evaluated:
        subjects = [Subject(path.name, measurements={"ripe": counted(ripeness, "days", "ripe")}) for path in candidates]
        run = Start.now().run({}, (), {})
        record = EvaluationRecord(
            kind="fruit", runs=(run,), protocol={}, reference=Subject(reference.name), candidates=tuple(subjects)
        )
        return Evaluated(record, Page("fruit", "", "", (), tuple(Result(one.name) for one in subjects)))


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path)
    parser.add_argument("--keep", type=argument_type(parse_keep), default=1.0)
    parser.add_argument("--count", type=int, default=1)


def run(file: Path, keep: float, count: int) -> Record:
    failures: dict[str, BaseException] = {
        "interrupted": KeyboardInterrupt(),
        "late": KeyboardInterrupt("written before: a.sog"),
        "bad": ValueError("bad.ply: the field\nis wrong"),
        "bug": ZeroDivisionError("a bug"),
    }
    if file.name in failures:
        raise failures[file.name]
    if file.name == "missing":
        file.open()
    return Record(file, keep)


def show(record: Record) -> None:
    print("kept", record.keep)


@pytest.fixture(autouse=True)
def domains(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Entry]]:
    found = {
        "secateur.commands": [Entry("plant", CommandGroup("grows", {"prune": Command("cuts", configure, run, show)}))],
        "secateur.evaluators": [Entry("fruit", Fruit())],
    }
    monkeypatch.setattr(secateur.cli, "entry_points", lambda group: found[group])
    monkeypatch.delenv("SECATEUR_DEBUG", raising=False)
    return found


def test_a_command_runs_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plant", "prune", "oak", "--keep", "25%"]) == 0
    assert capsys.readouterr().out == "kept 0.25\n"


def test_json_stands_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plant", "prune", "oak", "--keep", "25%", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"file": "oak", "keep": 0.25, "worst": None}
    assert printed.err == ""


def test_a_recipe_gives_what_the_command_line_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("file: oak\nkeep: 0.5\n")
    assert main(["plant", "prune", "--config", str(recipe)]) == 0
    assert capsys.readouterr().out == "kept 0.5\n"
    assert main(["plant", "prune", "--config", str(recipe), "--keep", "10%"]) == 0
    assert capsys.readouterr().out == "kept 0.1\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plant", "prune", "missing"], ["missing: no such file"]),
        (["plant", "prune", "bad"], ["bad.ply: the field is wrong"]),
        (["plant", "prune", "oak", "--keep", "25x"], ["--keep", "25x", "write a share"]),
        (["plant", "prune", "oak", "--keep", "250%"], ["250%", "at most 100%"]),
        (["plant", "prune", "oak", "--count", "many"], ["--count", "whole number", "many"]),
        (["plant", "prune", "oak", "--nope"], ["--nope"]),
        (["plant", "prune", "oak", "--config", "no.yaml"], ["no.yaml"]),
        (["plant", "prune"], ["missing: file"]),
        (["plant"], ["choose one of prune"]),
        (["plant", "paint"], ["paint", "prune"]),
        (["animal"], ["animal", "plant", "evaluate"]),
        (["evaluate", "no.fruit", "other.fruit", "-o", "x"], ["no.fruit: no such file"]),
        (["evaluate", "."], ["missing: output"]),
        (["evaluate", "plum.fruit", "-o", "x"], ["plum.fruit: no such file"]),
        (["evaluate", ".", "--merge", "-o", "x"], ["results.json: no such file", "run that reports"]),
        (["evaluate", ".", "--merge", "--fail-on-worse", "-o", "x"], ["--fail-on-worse", "--compare"]),
    ],
)
def test_mistakes_take_one_line_and_exit_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("secateur: error: ")
    assert all(word in printed.err for word in words)


def test_ctrl_c_says_what_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plant", "prune", "interrupted"]) == 130
    assert capsys.readouterr().err == "secateur: interrupted, nothing written\n"
    assert main(["plant", "prune", "late"]) == 130
    assert capsys.readouterr().err == "secateur: interrupted, written before: a.sog\n"


@pytest.mark.parametrize("by_flag", [True, False])
def test_debug_shows_the_stack(by_flag: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments = ["plant", "prune", "bad"]
    if by_flag:
        arguments.append("--debug")
    else:
        monkeypatch.setenv("SECATEUR_DEBUG", "1")
    assert main(arguments) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_not_dressed_up_as_a_mistake() -> None:
    with pytest.raises(ZeroDivisionError):
        main(["plant", "prune", "bug"])


def test_help_lists_the_domains(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in ("plant", "grows", "evaluate"))


def test_an_evaluator_is_picked_by_what_the_reference_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.fruit", "b.fruit", "c.stone"):
        (tmp_path / name).touch()
    a, b, c = (str(tmp_path / name) for name in ("a.fruit", "b.fruit", "c.stone"))
    assert main(["evaluate", a, b, "-o", str(tmp_path), "--ripeness", "5", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "results.json").read_text())
    assert record["candidates"][0]["measurements"]["ripe"]["value"] == 5
    assert main(["evaluate", a, b, "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "b.fruit" in printed and "3 days" in printed
    assert main(["evaluate", c, b, "-o", str(tmp_path)]) == 2
    assert "kinds are fruit" in capsys.readouterr().err


def test_a_domain_that_cannot_be_loaded_is_named(domains: dict[str, list[Entry]], capsys: Any) -> None:
    domains["secateur.commands"].append(Entry("broken", ImportError("no module named soil")))
    assert main(["--help"]) == 2
    assert "'broken' (somewhere:thing) cannot be loaded: no module named soil" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from secateur.cli import main; main(['splat', 'compress', '--help']);"
        "sys.exit(bool({'torch', 'numba', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--keep" in done.stdout
