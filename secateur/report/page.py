"""A report as data: what the page shows, and `write_report`, which writes it down. It knows no domain."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secateur.files import replacing_file
from secateur.report.record import to_json

Image = NDArray[np.uint8]
"""(H, W, 3) sRGB."""

Errors = NDArray[np.float32]
"""(H, W) absolute difference of each pixel from its reference, in levels of 255."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A key figure: what it is, its value, the value before (as before -> value), and a word on it, in its tone."""

    label: str
    value: str
    before: str | None = None
    note: str | None = None
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Meter:
    """A table cell with a bar behind it that fills `share` (0 to 1) of the width; sorted by that share."""

    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Number:
    """A table cell of a number.

    Args:
        text: the number for people.
        value: what rows are sorted by; None where there is no number.
        note: a second line under it, such as its difference to the reference.
        tone: what the note says: "better", "worse", or nothing.
        best: marks the best of its column.
    """

    text: str
    value: float | None = None
    note: str | None = None
    tone: Tone = ""
    best: bool = False


Tone = Literal["", "better", "worse"]

Cell = str | Meter | Number


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the first column names the row, the others are numbers. Readers sort it by clicks on its header.

    Args:
        title: heading.
        columns: one a cell of each row.
        rows: the cells.
        note: small print below.
        total: a last row that stays where it is.
        sortable: False where rows are of different kinds, so that sorting them has no meaning.
        pinned: how many of the first rows stay on top when the others are sorted.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str | None = None
    total: tuple[Cell, ...] | None = None
    sortable: bool = True
    pinned: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """A picture of the original, that every result is compared with."""

    name: str
    image: Image


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture that stands for itself, with nothing to compare it with: a chart, samples, token maps."""

    title: str
    image: Image
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One result: its key figures and tables, and for each view its picture, that picture's errors and a word on it."""

    name: str
    figures: tuple[Figure, ...] = ()
    images: tuple[Image, ...] = ()
    errors: tuple[Errors, ...] = ()
    captions: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a plot, with its name; one that is called as a result chooses it.

    Args:
        x: place from left to right.
        y: place from bottom to top.
        name: written beside it.
        interval: how sure y is: lower and upper end; None where that is not known.
    """

    x: float
    y: float
    name: str
    interval: tuple[float, float] | None = None


Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Plot:
    """Points, such as quality over size.

    Where the axes say which way is better, the line is the Pareto front: through the points that no other is at least
    as good as in both and better in one. Elsewhere it goes through all points from left to right.
    """

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    x_better: Better = "neither"
    y_better: Better = "neither"


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report.

    Args:
        title: name of the thing.
        subtitle: a sentence on what was done to it.
        original: what the pictures on the left are called.
        views: pictures of the original.
        results: at least one, each with a name of its own, and a picture for each view.
        plots: of the results, or of how they came to be.
        details: name -> value, for the small print: what was run, and on what.
        summary: all results beside the original; a row whose first cell is a result's name chooses it.
        tables: of the whole run, whichever result is chosen.
        command: what was typed to get this.
        chosen: index of the result that is shown first.
        links: what a reader may go on to: text -> address relative to the page, of a file in or below its folder.
    """

    title: str
    subtitle: str
    original: str
    views: tuple[View, ...]
    results: tuple[Result, ...]
    plots: tuple[Plot, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    summary: Table | None = None
    tables: tuple[Table, ...] = ()
    command: str | None = None
    chosen: int = 0
    links: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("a report needs at least one result")
        names = [result.name for result in self.results]
        if len(set(names)) != len(names):
            raise ValueError(f"results need names of their own, got {', '.join(map(repr, names))}")
        if not 0 <= self.chosen < len(names):
            raise ValueError(f"result {self.chosen} is to be shown first, of {len(names)}")
        for result in self.results:
            if {len(result.images), len(result.errors), len(result.captions)} != {len(self.views)}:
                needs = f"a picture, its errors and a caption for each of {len(self.views)} views"
                raise ValueError(f"result {result.name!r} needs {needs}")


def write_report(page: Page, record: Any, directory: str | os.PathLike[str]) -> Path:
    """Write `results.json` (the record) and `index.html` (the page, with all that it needs inside) into `directory`.

    Each file appears whole or not at all.

    Args:
        page: what people see.
        record: what programs read: dataclasses, mappings, sequences, numbers and text.
        directory: made when it is not there.

    Returns:
        path of the page.

    Raises:
        ValueError: the page would be too large, as `render_page`.
    """
    from secateur.report.html import render_page

    directory = Path(directory)
    text = json.dumps(to_json(record), indent=2, allow_nan=False) + "\n"
    html = render_page(page)
    for name, content in (("results.json", text), ("index.html", html)):
        with replacing_file(directory / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return directory / "index.html"


def errors_between(image: Image, reference: Image) -> Errors:
    """(H, W) mean over the channels of the absolute difference, in levels of 255."""
    difference = np.abs(image.astype(np.float32) - reference.astype(np.float32))
    return np.asarray(difference.mean(axis=-1), np.float32)


def as_pictures(images: Sequence[NDArray[np.float32]]) -> tuple[Image, ...]:
    """Images in [0, 1], clamped and rounded to 8 bits."""
    return tuple(np.asarray(np.clip(image, 0, 1) * 255 + 0.5, np.uint8) for image in images)
