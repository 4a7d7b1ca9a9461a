"""Recipes that come with a package: found by name, and listed with what they say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rich.table import Table

_SUFFIX = ".yaml"


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """A recipe that comes with the package.

    Args:
        name: what commands know it by.
        about: its comment at the top, as one paragraph.
        path: the file.
    """

    name: str
    about: str
    path: Path


def shipped_recipes(folder: Path) -> tuple[ShippedRecipe, ...]:
    """The recipes of a folder, by name."""
    return tuple(ShippedRecipe(path.stem, _about(path), path) for path in sorted(folder.glob(f"*{_SUFFIX}")))


def find_recipe(given: Path, folder: Path) -> Path:
    """The file that a user means: a path, or the name of a recipe in `folder`. Looked for in this order.

    Raises:
        FileNotFoundError: it is neither; the message names the shipped recipes that are meant most likely.
    """
    if given.exists():
        return given
    names = [path.stem for path in sorted(folder.glob(f"*{_SUFFIX}"))]
    if str(given).removesuffix(_SUFFIX) in names:
        return folder / f"{given.stem}{_SUFFIX}"
    like = get_close_matches(given.stem, names, n=3) or names[:3]
    raise FileNotFoundError(
        f"{given}: no such file, nor the name of a recipe that comes with the package, such as {', '.join(like)}"
    )


def recipe_table(recipes: Sequence[ShippedRecipe]) -> Table:
    """A row for each recipe."""
    table = Table("recipe", "what it does", title="Recipes that come with the package", title_justify="left")
    table.columns[0].no_wrap = True
    for recipe in recipes:
        table.add_row(recipe.name, recipe.about)
    return table


def _about(path: Path) -> str:
    """The comment that a file begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)
