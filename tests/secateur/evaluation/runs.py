"""What everything that is run leaves behind can be merged, compared and listed: checked for each command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from secateur.cli import main
from secateur.evaluation.decode import load_record
from secateur.evaluation.record import EvaluationRecord
from secateur.evaluation.schema import record_schema
from secateur.report.index import write_index

_SHORTEST = 3
"""Entries of a list of numbers from which on two that are the same are the same thing twice."""


def checked_run(folder: Path) -> EvaluationRecord:
    """The record of a run, which fits the schema, holds nothing twice and names what it was run on."""
    written = json.loads((folder / "results.json").read_text())
    jsonschema.validate(written, record_schema())
    record = load_record(folder)
    (run,) = record.runs
    assert run.command and run.secateur and run.machine.cores and run.versions["torch"] and run.threads >= 1
    assert "secateur" not in run.versions and run.seconds and min(run.seconds.values()) >= 0 and record.candidates
    twice = _twice(written)
    assert not twice, f"the same numbers stand in {twice}"
    return record


def merge_compare_and_list(run: Path, again: Path, into: Path, *, same: bool = False) -> EvaluationRecord:
    """Two runs of one command against one reference as one comparison, against the first of them; and the index.

    Args:
        run: folder of the first.
        again: folder of the second; both lie in one folder.
        into: folder for the comparison.
        same: whether both measured the same candidates, which then stand in it once.
    """
    first, second = checked_run(run), checked_run(again)
    assert main(["evaluate", "--merge", str(run), str(again), "-o", str(into), "--compare", str(run)]) == 0
    merged = load_record(into)
    assert len(merged.runs) == 2 and merged.kind == first.kind and (into / "index.html").is_file()
    assert len(merged.candidates) == len(first.candidates) + (0 if same else len(second.candidates))
    assert merged.comparison is not None and merged.comparison.changes
    reference = [one for one in merged.comparison.changes if one.subject == first.reference.name]
    assert {one.verdict for one in reference} <= {"within noise", "unclear"}
    page, runs = write_index(run.parent)
    listed = {one.folder: one for one in runs}
    for folder, record in ((run, first), (again, second)):
        one = listed[folder.relative_to(run.parent).as_posix()]
        assert one.kind == record.kind and one.has_page and not one.problem
        assert record.candidates[0].name in one.headlines[0] and one.date == record.runs[0].started_at
    page.unlink()
    return merged


def _twice(written: Any) -> list[list[str]]:
    """Places of lists of measured numbers, which counts are not, that stand more than once in one subject."""
    places: dict[str, list[str]] = {}

    def visit(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for name, one in value.items():
                visit(one, f"{place}.{name}")
        elif isinstance(value, list):
            numbers = [one for one in value if type(one) in (int, float)]
            if len(numbers) == len(value) >= _SHORTEST and any(one % 1 for one in numbers):
                places.setdefault(json.dumps(value), []).append(place)
            for index, one in enumerate(value):
                visit(one, f"{place}[{index}]")

    for name, subject in (("reference", written["reference"]), *((one["name"], one) for one in written["candidates"])):
        places.clear()
        visit(subject, name)
        found = [where for where in places.values() if len(where) > 1]
        if found:
            return found
    return []
