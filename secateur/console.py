"""The one console of the command line: tables on stdout, progress on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Report = Callable[[float, str], None]
"""Told how much is done, 0 to 1, and what is being done now."""

LINES_SECONDS = 10.0
"""Time between lines on the same work, where there is no bar to show it."""

console = Console(soft_wrap=False)
"""For results: stdout."""

messages = Console(stderr=True)
"""For what goes on meanwhile: stderr, so that stdout can be piped."""


def result_table(title: str, *columns: str) -> Table:
    """An empty table of results: names on the left, numbers on the right; without any column's name it has no head."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def silent(done: float, doing: str) -> None:
    """A `Report` that tells nobody."""


def stretch(report: Report, start: float, end: float) -> Report:
    """A `Report` for a part of the work: its 0 to 1 is `start` to `end` of the whole."""
    return lambda done, doing: report(start + (end - start) * done, doing)


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A bar with the time that remains, on stderr.

    Where that is no terminal: a line whenever the work changes, which a text names before its first colon, and one now
    and then between.
    """
    if not messages.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda done, doing: progress.update(task, completed=done, description=doing)


def _lines() -> Report:
    last, told = "", -math.inf

    def tell(done: float, doing: str) -> None:
        nonlocal last, told
        title, now = doing.partition(":")[0], time.monotonic()
        if title != last or now - told >= LINES_SECONDS:
            messages.print(f"{done:4.0%} {doing}", highlight=False, markup=False)
            last, told = title, now

    return tell
