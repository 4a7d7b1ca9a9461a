"""The index of a folder of runs: one page that lists them, newest first, and leads to each one's own page."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from secateur.evaluation.decode import RESULTS, load_record
from secateur.evaluation.record import EvaluationRecord, Subject
from secateur.files import replacing_file
from secateur.report.difference import difference, is_cost, say_shortly
from secateur.report.html import asset

PAGE = "index.html"

_LARGEST_RECORD = 64_000_000
_LARGEST_HEAD = 60_000
_LARGEST_INDEX = 8_000_000
_MOST_RUNS = 2000
_DEEPEST = 8
_CANDIDATES = 3
_LETTERS = 400
_MARK = '<meta name="generator" content="secateur: index of runs">'
_ICON = re.compile(r'<link rel="icon" href="(data:image/webp;base64,[A-Za-z0-9+/=]{1,40000})">')


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run as the index shows it.

    Args:
        folder: path from the index to it, with "/" between parts.
        has_page: whether there is a page to lead to.
        kind: of what was measured; empty where its record does not say.
        date: when it began, or when its record was written, in UTC.
        headlines: a line for each of the first few candidates.
        more: candidates that are not listed.
        icon: data URI of a small picture.
        problem: why its record says nothing; empty where it does.
    """

    folder: str
    has_page: bool
    kind: str
    date: str
    headlines: tuple[str, ...]
    more: int = 0
    icon: str | None = None
    problem: str = ""


def write_index(folder: Path) -> tuple[Path, list[ListedRun]]:
    """Write `index.html` into a folder of runs: a page that lists every folder below it that has a `results.json`.

    Names and records may be anybody's: all text is escaped, and files of absurd size are named but not read.

    Returns:
        path of the page, and the runs that it lists, the newest first.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no run lies below it, it is itself a run, or it has an `index.html` that is no index of runs.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    page = folder / PAGE
    if (folder / RESULTS).exists():
        raise ValueError(f"{folder}: is a run itself, and {PAGE} is its page; name the folder above it")
    if page.exists() and _MARK not in _head(page):
        raise ValueError(f"{page}: is no index of runs, and would be overwritten; move it away")
    runs = sorted((_listed(run, folder) for run in _runs_below(folder)), key=lambda run: (run.date, run.folder))[::-1]
    if not runs:
        raise ValueError(f"{folder}: no run lies below it (a run is a folder with {RESULTS})")
    with replacing_file(page) as temporary:
        temporary.write_text(render_index(folder.resolve().name or "runs", runs), encoding="utf-8")
    return page, runs


def render_index(title: str, runs: Sequence[ListedRun]) -> str:
    """The page; pictures are left out of the last runs where it would become too large."""
    items, size = [], 0
    for run in runs:
        item = _item(run, with_icon=size < _LARGEST_INDEX)
        size += len(item)
        items.append(item)
    count = "One run" if len(runs) == 1 else f"{len(runs):,} runs"
    return Template(asset("runs.html")).substitute(
        mark=_MARK,
        title=escape(_readable(title)),
        count=f"{count}, the newest first.",
        style=asset("page.css") + asset("runs.css"),
        runs="".join(items),
    )


def _runs_below(folder: Path) -> Iterator[Path]:
    """Folders with a record, in the order of their names; links are not followed, hidden folders left out."""
    found = 0
    for place, folders, files in os.walk(folder):
        path = Path(place)
        depth = len(path.relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < _DEEPEST else []
        if RESULTS in files and found < _MOST_RUNS:
            found += 1
            yield path


def _listed(path: Path, root: Path) -> ListedRun:
    folder = path.relative_to(root).as_posix()
    results, page = path / RESULTS, path / PAGE
    written = datetime.fromtimestamp(results.stat().st_mtime, UTC).isoformat(timespec="seconds")
    head = _head(page) if page.is_file() else ""
    icon = _ICON.search(head)
    shown = None if icon is None else icon[1]
    if results.stat().st_size > _LARGEST_RECORD:
        size = f"{results.stat().st_size / 1e6:.0f} MB"
        return ListedRun(folder, bool(head), "", written, (), 0, shown, f"{RESULTS} is too large to read: {size}")
    try:
        record = load_record(path)
    except (ValueError, OverflowError, RecursionError, OSError):
        return ListedRun(folder, bool(head), "", written, (), 0, shown, f"{RESULTS} is no record that can be read")
    named = tuple(_headline(one, record) for one in record.candidates[:_CANDIDATES])
    date = record.runs[0].started_at if record.runs else written
    more = max(0, len(record.candidates) - _CANDIDATES)
    return ListedRun(folder, bool(head), record.kind, date, named, more, shown)


def _headline(one: Subject, record: EvaluationRecord) -> str:
    """The first measurement of quality and the first of cost, with the ratio of the cost."""
    measured = list(one.measurements.items())
    quality = next(((name, value) for name, value in measured if not is_cost(value)), None)
    cost = next(((name, value) for name, value in measured if is_cost(value)), None)
    parts = []
    for found in (quality, cost):
        if found is not None:
            name, value = found
            words = difference(value, record.reference_measurements(one).get(name)).words if is_cost(value) else ""
            parts.append(f"{value.label} {say_shortly(value)}{f' ({words})' if words else ''}")
    return f"{one.name}: {', '.join(parts)}" if parts else one.name


def _head(page: Path) -> str:
    with page.open("rb") as file:
        return file.read(_LARGEST_HEAD).decode("utf-8", errors="replace")


def _item(run: ListedRun, with_icon: bool) -> str:
    name = escape(_readable(run.folder))
    title = f'<a href="./{_address(run.folder)}/{PAGE}">{name}</a>' if run.has_page else name
    picture = f'<img alt="" width="72" height="72" src="{run.icon}">' if run.icon and with_icon else "<i></i>"
    said = "".join(f"<p>{escape(_readable(line))}</p>" for line in run.headlines)
    more = f"<p>and {run.more:,} more</p>" if run.more else ""
    problem = f'<p class="problem">{escape(run.problem)}</p>' if run.problem else ""
    kind = f'<span class="kind">{escape(_readable(run.kind))}</span>' if run.kind else ""
    date = escape(_readable(run.date).replace("T", " ").replace("+00:00", " UTC"))
    return f"<li>{picture}<div><h2>{title}</h2><p class='when'>{kind}{date}</p>{said}{more}{problem}</div></li>"


def _address(folder: str) -> str:
    """The path as part of a URL; no part of it can be taken for a scheme, a query or a fragment."""
    return quote(os.fsencode(folder))


def _readable(text: str) -> str:
    """Text of bounded length that UTF-8 can hold."""
    plain = text.encode("utf-8", "replace").decode("utf-8")
    return plain if len(plain) <= _LETTERS else f"{plain[: _LETTERS - 1]}…"
