"""Recipes: what is built from YAML, and where a mistake is said to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from secateur.allocation import Allocator, allocate, allocate_per_group
from secateur.importance import Magnitude, Taylor
from secateur.recipe import read_recipe, recipe_of
from secateur.units import Criterion


@dataclass(frozen=True)
class Units:
    kinds: tuple[Literal["heads", "neurons"], ...] = ("heads",)
    floors: Mapping[str, int] = field(default_factory=dict)
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, got {self.rate}")


@dataclass(frozen=True)
class Origin:
    id: str
    units: Units | None = None
    more: tuple[Units, ...] = ()


@dataclass(frozen=True)
class Recipe:
    model: str
    units: Units = field(default_factory=Units)
    criterion: Criterion = field(default_factory=Magnitude)
    allocator: Allocator = allocate
    folder: Path | None = None
    origin: Origin | None = None


def written(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_becomes_its_dataclass(tmp_path: Path) -> None:
    text = """
model: small
units: {kinds: [heads, neurons], floors: {heads: 2}, rate: 1e-4}
criterion:
  class_path: secateur.importance.Taylor
  init_args: {reduce: square}
allocator: secateur.allocation.allocate_per_group
folder: some/where
"""
    found = read_recipe(written(tmp_path, text), Recipe)
    assert found.recipe == Recipe(
        "small",
        Units(("heads", "neurons"), {"heads": 2}, 1e-4),
        Taylor(reduce="square"),
        allocate_per_group,
        Path("some/where"),
    )
    assert found.place("criterion", "init_args", "reduce").endswith("some.yaml:6: criterion.init_args.reduce: ")
    assert ":3: units.rate.x: " in found.place("units", "rate", "x")


def test_defaults_are_those_of_the_dataclass(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, "model: small"), Recipe).recipe == Recipe("small")


class Source:
    """Where data come from."""


@dataclass(frozen=True)
class Drawn(Source):
    count: int = 64
    batch_size: int = 16


@dataclass(frozen=True)
class Files(Source):
    folder: Path
    count: int | None = None
    batch_size: int = 8


@dataclass(frozen=True)
class Loop:
    source: Source = field(default_factory=Drawn)


@dataclass(frozen=True)
class Training:
    loop: Loop = field(default_factory=Loop)


@pytest.mark.parametrize(
    ("text", "built"),
    [
        ("{folder: a}", Files(Path("a"))),
        ("{folder: a, batch_size: 2}", Files(Path("a"), batch_size=2)),
    ],
)
def test_a_class_does_not_take_the_values_of_the_one_it_replaces(tmp_path: Path, text: str, built: Source) -> None:
    source = f"source: {{class_path: {__name__}.Files, init_args: {text}}}"
    assert read_recipe(written(tmp_path, f"loop: {{{source}}}"), Training).recipe == Training(loop=Loop(built))
    nested = f"source: {{class_path: {__name__}.Of, init_args: {{{source}}}}}"
    assert read_recipe(written(tmp_path, f"loop: {{{nested}}}"), Training).recipe == Training(loop=Loop(Of(built)))


@dataclass(frozen=True)
class Of(Source):
    source: Source = field(default_factory=Drawn)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("model: a\nunit: {}", 2, "unknown key 'unit'"),
        ("model: a\nunits:\n  rate: 1\n  kind: [heads]", 4, "there is no 'kind'"),
        ("model: a\nunits:\n  rate: 1\n  kinds: [tails]", 4, "expected one of 'heads', 'neurons'"),
        ("model: a\nunits:\n  rate: -1", 2, "rate must not be negative"),
        ("model: a\nunits:\n  rate: fast", 3, "expected float"),
        ("model: a\nunits: 5", 2, "units: expected a mapping of kinds, floors, rate, got int"),
        ("model: a\nunits: some.yaml", 2, "units: expected a mapping of kinds, floors, rate, got str"),
        ("model: a\nunits:", 2, "units: expected a mapping of kinds, floors, rate, got nothing"),
        ("model: a\norigin: small", 2, r"origin: expected a mapping such as {id: small}, got str"),
        ("model: a\norigin:\n  id: b\n  units: 5", 4, "origin.units: expected a mapping of kinds"),
        ("model: a\norigin:\n  id: b\n  more:\n    - rate: 1\n    - 5", 6, "origin.more.1: expected a mapping"),
        ("model: a\nmodel: b", 2, "there twice"),
        ("model: a\nunits: [", 2, "not YAML"),
        ("model: a\ncriterion:\n  class_path: secateur.importance.Absent", 2, "Absent"),
        ("model: a\ncriterion:\n  class_path: json.dumps", 2, "does not implement protocol Criterion"),
        (
            "model: a\ncriterion:\n  class_path: secateur.importance.Taylor\n  init_args:\n    reducing: abs",
            5,
            "reducing",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        read_recipe(written(tmp_path, text), Recipe)
    assert f"some.yaml:{line}: " in str(raised.value)
    assert "\n" not in str(raised.value)


@dataclass(frozen=True)
class Step:
    drop: Units | None = None
    tune: Units | None = None


@dataclass(frozen=True)
class Steps:
    steps: tuple[Step, ...]


@pytest.mark.parametrize("empty", ["{}", "{rate: 1.0}"])
def test_an_empty_mapping_in_a_list_is_a_dataclass_as_by_default(tmp_path: Path, empty: str) -> None:
    found = read_recipe(written(tmp_path, f"steps:\n  - drop: {empty}\n  - tune: {empty}\n  - {{}}\n"), Steps)
    assert found.recipe.steps == (Step(drop=Units()), Step(tune=Units()), Step())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'model' is missing"):
        read_recipe(written(tmp_path, "units: {}"), Recipe)
    with pytest.raises(ValueError, match="a recipe is a mapping"):
        read_recipe(written(tmp_path, "- model"), Recipe)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_recipe(tmp_path / "absent.yaml", Recipe)


def test_yaml_builds_no_objects_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not YAML"):
        read_recipe(written(tmp_path, "model: !!python/object/apply:os.getcwd []"), Recipe)


def test_later_mistakes_are_laid_at_the_line_too(tmp_path: Path) -> None:
    found = read_recipe(written(tmp_path, "model: a\nunits:\n  rate: 2"), Recipe)
    with pytest.raises(ValueError, match=r"some\.yaml:3: units\.rate: too fast"), found.blaming("units", "rate"):
        raise ValueError("too fast")


def test_a_recipe_is_saved_as_it_was_written(tmp_path: Path) -> None:
    text = "# why\nmodel: a   # this one\n"
    found = read_recipe(written(tmp_path, text), Recipe)
    assert found.save(tmp_path / "result").read_text(encoding="utf-8") == text


def test_a_recipe_made_in_python_reads_back(tmp_path: Path) -> None:
    made = Recipe("a", Units(rate=2.0, floors={"heads": 1}), Taylor(reduce="square"), allocate_per_group, Path("x"))
    path = recipe_of(made).save(tmp_path)
    read = read_recipe(path, Recipe)
    assert read.recipe == made and recipe_of(read) is read
    assert recipe_of(made).place("units").startswith("units: ")
    with pytest.raises(ValueError, match="cannot hold"):
        recipe_of(Recipe("a", allocator=lambda scores, groups, budget: {}))
