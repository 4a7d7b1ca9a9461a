"""How many frames a second: warmed up, repeated, with the threads pinned and the machine's load written down."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch

from secateur.metrics.timing_turn import timing_turn

Clock = Literal["host", "cuda"]


@dataclass(frozen=True, slots=True)
class Speed:
    """The time that a frame takes, over several repeats of the same frames.

    Args:
        frames_per_second: from the median.
        median_ms: median over repeats of the mean time of a frame, in milliseconds.
        minimum_ms: the fastest repeat, in milliseconds a frame: what the machine can do when nothing disturbs it.
        frames: frames in a repeat.
        repeats: number of repeats that were timed, after one warm-up.
        threads: threads that torch and numba were held to.
        load_average: load average of the machine over the last minute when timing began; None where it has none.
        times_ms: the mean time of a frame in each repeat, in order, in milliseconds.
        first_call_ms: of the very first frame, before the warm-up: with whatever was compiled or loaded for it and not
            before in this process. No other number here has a part in it.
        clock: "host": wall clock, the device waited for; "cuda": events on the device's stream.
    """

    frames_per_second: float
    median_ms: float
    minimum_ms: float
    frames: int
    repeats: int
    threads: int
    load_average: float | None
    times_ms: tuple[float, ...]
    first_call_ms: float
    clock: Clock

    @classmethod
    def of(
        cls,
        times_ms: Sequence[float],
        *,
        frames: int,
        threads: int,
        load_average: float | None,
        first_call_ms: float,
        clock: Clock,
    ) -> Self:
        """What the times of repeats, at least one, come to."""
        times, median = tuple(times_ms), statistics.median(times_ms)
        return cls(
            1000.0 / median, median, min(times), frames, len(times), threads, load_average, times, first_call_ms, clock
        )

    def with_times(self, times_ms: Sequence[float]) -> Self:
        """The same with these repeats, at least one."""
        return self.of(
            times_ms,
            frames=self.frames,
            threads=self.threads,
            load_average=self.load_average,
            first_call_ms=self.first_call_ms,
            clock=self.clock,
        )


def measure_speed(draw: Callable[[int], object], frames: int, *, repeats: int = 5, threads: int | None = None) -> Speed:
    """Time `draw(frame)` for frame 0 .. frames-1, `repeats` times after one warm-up of all the frames.

    One process of a user times at a time on a machine: others wait, as `timing_turn` says.

    Args:
        draw: draws one frame.
        frames: number of frames in a repeat.
        repeats: number of timed repeats.
        threads: threads that torch and numba may use; None: as many as they use now.

    Raises:
        ValueError: `frames` or `repeats` is below 1.
    """
    if frames < 1 or repeats < 1:
        raise ValueError(f"frames and repeats must be at least 1, got {frames} and {repeats}")
    with timing_turn(), pinned_threads(threads) as used:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        first, _ = _time_frames(draw, range(1))
        for frame in range(1, frames):
            draw(frame)
        timings = [_time_frames(draw, range(frames)) for _ in range(repeats)]
    times = [milliseconds for milliseconds, _ in timings]
    clock = timings[0][1]
    return Speed.of(times, frames=frames, threads=used, load_average=load, first_call_ms=first, clock=clock)


@contextmanager
def pinned_threads(count: int | None) -> Iterator[int]:
    """Hold torch (and numba, where it is loaded) to `count` threads while the context is open; yields the count."""
    numba = sys.modules.get("numba")
    before = torch.get_num_threads()
    before_numba = numba.get_num_threads() if numba else 0
    count = before if count is None else count
    torch.set_num_threads(count)
    if numba:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield count
    finally:
        torch.set_num_threads(before)
        if numba:
            numba.set_num_threads(before_numba)


def _time_frames(draw: Callable[[int], object], frames: range) -> tuple[float, Clock]:
    """Milliseconds a frame, and by which clock."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return _time_on_device(draw, frames) / len(frames), "cuda"
    start = time.perf_counter()
    for frame in frames:
        draw(frame)
    return (time.perf_counter() - start) * 1000.0 / len(frames), "host"


def _time_on_device(draw: Callable[[int], object], frames: range) -> float:
    """Milliseconds between two events around the frames on the current stream: idle waits for the host count."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for frame in frames:
        draw(frame)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
