"""The command that all benches are: what it measures again, where figures go, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def toy(bench: Callable[[str], ModuleType]) -> Any:
    """A bench of two sections, whose parts say how often they were measured."""
    counts: dict[str, int] = {}

    def jobs(section: str) -> Callable[[Any], dict[str, Any]]:
        def counted(name: str) -> dict[str, Any]:
            counts[name] = counts.get(name, 0) + 1
            return {"count": counts[name]}

        return lambda settings: {
            f"{section} {part}": lambda report, folder, name=f"{section} {part}": counted(name) for part in settings
        }

    draw = lambda results, folder: [folder / f"{section}.png" for section in results]  # noqa: E731
    return bench("command").Bench("toy", "What toys do.", {"a": jobs("a"), "b": jobs("b")}, ("numpy",), draw)


def test_what_is_held_already_is_not_measured_again(toy: Any, tmp_path: Path) -> None:
    output = tmp_path / "toy.json"
    given = ["--output", str(output), "--images", str(tmp_path)]
    toy.run(toy.parse(toy.parser(), [*given, "--only", "a"]), ("x", "y"))
    toy.run(toy.parse(toy.parser(), [*given, "--missing"]), ("x", "y"), peer="1.0")
    results = json.loads(output.read_text())
    assert {part["count"] for section in results.values() for part in section.values()} == {1}
    assert results["b"]["b x"]["conditions"]["peer"] == "1.0"
    toy.run(toy.parse(toy.parser(), [*given, "--parts", "* y"]), ("x", "y"))
    again = json.loads(output.read_text())
    assert [again["a"][name]["count"] for name in ("a x", "a y")] == [1, 2]


def test_quick_figures_stay_away_from_those_that_mean_something(toy: Any) -> None:
    quick, whole = (toy.parse(toy.parser(), given) for given in (["--quick"], []))
    assert quick.output.parent == quick.images == quick.scratch
    assert whole.output.parts[-2:] == ("results", "toy.json") and whole.images.parts[-2:] == ("docs", "images")


def test_an_unknown_section_is_refused_with_those_that_are_known(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        toy.parse(toy.parser(), ["--only", "a,c"])
    assert "'c' is none of a, b" in capsys.readouterr().err
