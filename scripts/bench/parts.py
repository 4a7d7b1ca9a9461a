"""What the benches share: parts that are measured one after another, each kept in the JSON as soon as it is known."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from secateur.console import Report, progress_bar, stretch
from secateur.files import replacing_file
from secateur.metrics.speed import pinned_threads
from secateur.report.record import describe_machine, package_versions, to_json

Job = Callable[[Report, Path], dict[str, Any]]
"""Measures one part of a section; it may write into the folder that it is given. Returns what goes into the JSON."""


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of the JSON: `results[section][name]`."""

    section: str
    name: str
    job: Job


def measure(
    parts: Sequence[Part], output: Path, threads: int, packages: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Measure part after part, and keep each in `output` with the conditions that it was measured under.

    Args:
        parts: what to measure.
        output: the JSON.
        threads: what torch, numba and the processes that `run_process` starts are held to.
        packages: whose versions are written down.
        facts: written down beside them.
    """
    with pinned_threads(threads) as used, progress_bar() as report:
        for number, part in enumerate(parts):
            share = stretch(report, number / len(parts), (number + 1) / len(parts))
            record, conditions = _measured(part.job, lambda done, doing, share=share: share(done, doing), packages)
            keep(output, part.section, part.name, record | {"conditions": conditions | {"threads": used} | facts})


def parts_left(jobs: Mapping[str, Mapping[str, Job]], pattern: str, held: Mapping[str, Any]) -> list[Part]:
    """The parts whose names match the pattern, without those whose figures are held already.

    Args:
        jobs: section -> part -> what measures it.
        pattern: of `fnmatch`.
        held: section -> part -> record; one that failed is measured again.
    """
    return [
        Part(section, part, _forgiving(job))
        for section, of_section in jobs.items()
        for part, job in of_section.items()
        if fnmatchcase(part, pattern) and "failed" in held.get(section, {}).get(part, {"failed": "not measured"})
    ]


def _forgiving(job: Job) -> Job:
    """The job, with why it failed in the place of its rows where it did: one criterion must not end the others."""

    def run(report: Report, folder: Path) -> dict[str, Any]:
        try:
            return job(report, folder)
        except (ValueError, RuntimeError) as error:
            return {"failed": str(error).partition("\n")[0], "rows": []}

    return run


def keep(output: Path, section: str, part: str, record: dict[str, Any]) -> None:
    """Put one part's record into the JSON; everything else in it stays."""
    results = read_results(output)
    results.setdefault(section, {})[part] = to_json(record)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(output) as temporary:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """What was measured so far; nothing where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def _measured(job: Job, report: Report, packages: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A part's record, and the conditions that it was measured under."""
    load, start = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as folder:
        record = job(report, Path(folder))
    conditions = {
        "machine": describe_machine(),
        "versions": package_versions(*packages),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": time.perf_counter() - start,
        "load_average_before": load,
        "load_average_after": os.getloadavg()[0],
    }
    return record, conditions
