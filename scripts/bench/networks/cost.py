"""Section `cost`: time and memory of every scorer by the number of parameters, and of torch-pruning's."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job
from peers import Process, run_process

from networks import scoring
from networks.settings import Settings
from secateur.console import Report

HOW = (
    "A plain network (784, width, width, width, width, 10) with ReLUs and two batches of 16 pictures of noise; every "
    "scorer once in a process that is timed, and once in one that is weighed. seconds: to score, with the unit map "
    "made, after scoring a small network. In bytes of the network's parameters, copies: the most memory that scoring "
    "took above the network and what had been loaded; it holds the scores, answer_copies, which for single weights "
    "are a copy themselves, or two where they are float64; working_copies: the rest; alive_copies: all with the "
    "network itself. The largest of its layers is a third of a copy. The process that is weighed gives back what it "
    "lets go at once, as an allocator does not by itself. Small networks are little beside torch's own buffers, which"
    " count. SynFlow takes two rounds and estimated Hessians one probe; more of them multiply the time, not the "
    "memory."
)

_GIVING_BACK = ("env", "MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_TRIM_THRESHOLD_=65536", "MALLOC_TOP_PAD_=0")
"""glibc keeps freed pieces of a few megabytes for later; they would count as if they were held."""


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a size and kind of units, and one a size for torch-pruning."""
    parts: dict[str, Job] = {}
    for size in settings.sizes:
        for units in scoring.SCORERS:
            parts[f"{size:,}: {units}"] = partial(_size, size, units, settings)
        parts[f"{size:,}: torch-pruning"] = partial(_peer, size, settings)
    return parts


def _size(size: int, units: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    rows = []
    scorers = scoring.SCORERS[units]
    for number, scorer in enumerate(scorers):
        report(number / len(scorers), f"{size:,} parameters: {units}: {scorer}")
        asked = ("score", units, scorer, str(size))
        weighed = _in_own_process(settings, *asked, starter=_GIVING_BACK)
        seconds = {
            key: value for key, value in _in_own_process(settings, *asked).items() if key in ("seconds", "failed")
        }
        rows.append({"scorer": scorer} | weighed | seconds)
    return {"how": HOW, "rows": rows}


def _peer(size: int, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    report(0.0, f"{size:,} parameters: torch-pruning")
    return {"how": scoring.PEER_HOW} | _in_own_process(settings, "peer", str(size))


def _in_own_process(settings: Settings, *arguments: str, starter: tuple[str, ...] = ()) -> dict[str, Any]:
    command = [*starter, sys.executable, str(Path(scoring.__file__)), *arguments]
    try:
        done: Process = run_process(command, settings.limit_seconds)
    except TimeoutError as error:
        return {"failed": str(error)}
    return json.loads(done.output.strip().splitlines()[-1])
