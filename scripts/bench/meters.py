"""Stopwatch and memory meter of the benches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Seconds of `work`: fastest and median."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return {"minimum_s": min(times), "median_s": statistics.median(times), "repeats": repeats}


def peak_bytes_above(work: Callable[[], object]) -> int | None:
    """The most memory that the process had during `work`, over what it had before; None where Linux is not there."""
    refresh, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not refresh.exists():
        return None
    refresh.write_text("5")
    before = _kilobytes(status, "VmRSS")
    work()
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, field: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])
