"""The method matrix is up to date, complete, and tells from the code what a reader would."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import secateur.importance

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "method_matrix.py"


@pytest.fixture(scope="module")
def matrix() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("method_matrix", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["method_matrix"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["method_matrix"]


@pytest.fixture(scope="module")
def rows(matrix: ModuleType) -> dict[str, list[str]]:
    """`name (module)` -> family, papers, granularity, needs."""
    return {
        f"{row.name} ({row.where})": [row.family, ", ".join(row.papers), row.granularity, row.needs]
        for row in matrix.methods()
    }


def test_the_committed_page_is_what_the_code_says(matrix: ModuleType) -> None:
    committed = matrix.PAGE.read_text(encoding="utf-8")
    assert committed == matrix.page(), "docs/methods.md is out of date: run python scripts/method_matrix.py"


def test_papers_are_listed_once_with_all_methods_that_cite_them(matrix: ModuleType) -> None:
    section = matrix.page().split("## Papers")[1]
    lines = [line for line in section.splitlines() if line.startswith("| [")]
    papers = [line.split("]")[0] for line in lines]
    assert papers == sorted(set(papers))
    (wanda,) = (line for line in lines if "2306.11695" in line)
    assert "`Wanda`" in wanda and "`LayerWanda`" in wanda


def test_every_public_criterion_is_in_it(rows: dict[str, list[str]]) -> None:
    classes = [getattr(secateur.importance, name) for name in secateur.importance.__all__]
    for criterion in (thing for thing in classes if hasattr(thing, "score")):
        family, *_ = rows[f"{criterion.__name__} ({criterion.__module__})"]
        assert family == "Importance criteria"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("Lamp (secateur.importance.magnitude)", ["2010.07611", "any unit", "nothing"]),
        ("Taylor (secateur.importance.gradient)", ["1906.10771", "any unit", "data, gradients"]),
        ("Fisher (secateur.importance.curvature)", ["1801.05787", "any unit", "data, gradients"]),
        ("HessianTrace (secateur.importance.curvature)", ["2101.08940", "any unit", "data, second derivatives"]),
        ("Wanda (secateur.importance.activation)", ["2306.11695", "units of a network", "data"]),
        ("SynFlow (secateur.importance.synaptic)", ["2006.05467", "units of a network", "gradients"]),
        ("Opacity (compress3d.splats.importance)", ["", "Gaussians", "nothing"]),
        ("PupFisher (compress3d.splats.sensitivity)", ["2406.10219", "Gaussians", "views"]),
        ("SparseGPT (secateur.oneshot)", ["2301.00774", "weights of a layer", "layer inputs"]),
        ("HardConcrete (secateur.masks)", ["1712.01312", "any unit", "training"]),
        ("allocate_knapsack (secateur.allocation)", ["2002.08258", "any unit", "scores"]),
        ("GroupDecay (secateur.regularizers)", ["2301.12900", "any unit", "training"]),
        ("Chita (secateur.oneshot)", ["2302.14623", "", "gradients"]),
        ("ObsRefit (secateur.recovery.refit)", ["2403.18955", "weights of a layer", "layer inputs"]),
        ("ecoflap (secateur.ecoflap)", ["2310.02998", "", ""]),
        ("Polynomial (secateur.schedules)", ["1710.01878", "", "nothing"]),
    ],
)
def test_what_a_method_needs_is_told_from_its_code(
    rows: dict[str, list[str]], method: str, expected: list[str]
) -> None:
    _, papers, granularity, needs = rows[method]
    assert [papers.split(", ")[0], granularity, needs] == expected


def test_protocols_records_and_abstract_classes_are_no_methods(rows: dict[str, list[str]]) -> None:
    names = {row.partition(" ")[0] for row in rows}
    assert not names & {"Criterion", "Penalty", "Schedule", "SecondOrder", "TrainableMask", "Budget", "Soup", "Round"}


def test_papers_are_numbers_or_else_authors(matrix: ModuleType) -> None:
    assert matrix.papers_of("Lee et al. 2021 (arXiv\n    2010.07611), and arXiv 1308.3432.") == (
        "2010.07611",
        "1308.3432",
    )
    assert matrix.papers_of("Optimal Brain Damage, LeCun et al. 1989; 0.12345 of 1234") == ("LeCun et al. 1989",)
    assert matrix.papers_of("0.5 w") == ()


def test_cells_hold_no_markup_of_their_own(matrix: ModuleType) -> None:
    assert matrix._escaped("|w_i| * `a_b|c`") == r"\|w\_i\| \* `a_b\|c`"


def test_a_stale_page_is_told_and_mended(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "docs" / "methods.md")
    assert matrix.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().out
    assert matrix.main([]) == 0 and matrix.main(["--check"]) == 0
    assert matrix.main(["--elsewhere"]) == 2
