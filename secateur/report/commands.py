"""The commands of reports. What they do is imported when one of them runs: help must not wait for numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from secateur.cli import Command, CommandGroup

if TYPE_CHECKING:
    from secateur.report.index import ListedRun


def _configure_index(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of runs: of folders that have results.json")


def _index(folder: Path) -> Sequence[ListedRun]:
    from secateur.report.index import write_index

    return write_index(folder)[1]


def _show_index(runs: Sequence[ListedRun]) -> None:
    from rich.markup import escape

    from secateur.console import console, result_table

    table = result_table("index.html lists", "run", "kind", "began")
    for run in runs:
        table.add_row(*map(escape, (run.folder, run.kind, run.date)))
    console.print(table)


REPORT = CommandGroup(
    "what runs have left behind",
    {
        "index": Command(
            "write DIR/index.html: a page that lists the runs below the folder and leads to their pages",
            _configure_index,
            _index,
            _show_index,
        )
    },
)
