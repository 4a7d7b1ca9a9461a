"""Bringing a scene to a budget: one count after another is simplified, written, and read back, until one fits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from compress3d.cameras import Cameras
from compress3d.splats.budget import Budget
from compress3d.splats.evaluate import Judge
from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.rasterize.contributions import observe
from compress3d.splats.scene import SplatScene
from compress3d.splats.sizes import scene_bytes
from secateur.console import Report, stretch
from secateur.report.record import Steps
from secateur.search import largest_within, smallest_holding

SEARCH = 0.4
"""Share of the progress that finding a count gets where recovery follows."""

RECOVERIES = 3
"""Most counts that are recovered in search of a quality."""

_SAMPLE = 20_000


@dataclass(frozen=True, slots=True)
class Trial:
    """A count that a search tried.

    Args:
        gaussians: the count.
        bytes: of its file.
        psnr: in dB, where that was looked at.
        recovered: whether it was recovered by gradients, too.
    """

    gaussians: int
    bytes: int
    psnr: float | None
    recovered: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """A scene at one count, and the file that holds it.

    Args:
        scene: before the file's format rounds it.
        path: of the file; None where none is written.
        bytes: of the file.
    """

    scene: SplatScene
    path: Path | None
    bytes: int


class Bench:
    """Where one budget is met.

    Args:
        scene: what is to be compressed.
        simplify: brings it to a count.
        recover: wins back what that cost, for the file of this name and these writer's options; None: nothing does.
        cameras: the views that were scored through.
        judge: measures quality.
        budget: what may be left.
        folder: for files that come and go.
        output: where the result will go: its name says the format. None: nothing is written.
    """

    def __init__(
        self,
        scene: SplatScene,
        simplify: Callable[[int, Report], SplatScene],
        recover: Callable[[SplatScene, Path | None, dict[str, int], Report], SplatScene] | None,
        cameras: Cameras,
        judge: Judge,
        budget: Budget,
        folder: Path,
        output: Path | None,
    ) -> None:
        self.scene = scene
        self.simplify = simplify
        self.recover = recover
        self.cameras = cameras
        self.judge = judge
        self.budget = budget
        self.folder = folder
        self.output = output
        self.steps = Steps()
        self.trials: list[Trial] = []

    def attempt(self, count: int, report: Report) -> Attempt:
        """The scene at `count` Gaussians, written."""
        with self.steps("simplify"):
            small = self.simplify(count, report)
        return self._written(small)

    def recovered(self, attempt: Attempt, report: Report) -> Attempt:
        """The same count after recovery, written; the attempt itself where there is none."""
        if self.recover is None:
            return attempt
        with self.steps("recover"):
            better = self.recover(attempt.scene, self.output, self.writer_options(len(attempt.scene)), report)
        return attempt if better is attempt.scene else self._written(better)

    def _written(self, scene: SplatScene) -> Attempt:
        with self.steps("write"):
            path = self.write(scene)
        return Attempt(scene, path, scene_bytes(path) if path else 0)

    def write(self, scene: SplatScene) -> Path | None:
        """Write `scene` in the output's format, into a folder of its own; None when there is no output."""
        if self.output is None:
            return None
        path = Path(tempfile.mkdtemp(dir=self.folder)) / self.output.name
        if path.name == "meta.json":
            path = path.parent / self.output.resolve().parent.name / path.name
        try:
            write_scene(scene, path, **self.writer_options(len(scene)))
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), str(self.output))) from error
        return path

    def writer_options(self, count: int) -> dict[str, int]:
        """What the format's writer should do otherwise than by default.

        At one file size, a SOG of more Gaussians with a smaller palette of harmonics is the better one; and a palette
        that follows the count, where the default's doubles at powers of two, lets the size be met.
        """
        output, size = self.output, self.budget.size_bytes
        bundled = output is not None and (output.suffix.lower() in (".sog", "") or output.name == "meta.json")
        if size is None or not bundled or not self.scene.sh_degree:
            return {}
        return {"palette_size": min(max(count // 6, 1024), 65_536)}

    def decoded(self, attempt: Attempt) -> SplatScene:
        """What a reader of the attempt's file gets."""
        if attempt.path is None:
            return attempt.scene
        with self.steps("read back"):
            return read_scene(attempt.path)

    def judged(self, attempt: Attempt) -> float:
        """PSNR in dB of what a reader of the attempt's file gets, on the held-out views."""
        return self.judge.psnr(self.decoded(attempt))

    def fewest_seen_dropped(self, attempt: Attempt, count: int) -> Attempt:
        """The `count` Gaussians of an attempt that colour the scored views most, written."""
        weights = observe(attempt.scene, self.cameras).weights
        return self._written(attempt.scene.select(weights.topk(max(1, count)).indices.sort().values))

    def check(self) -> None:
        """Raise an error where the output can never be written, before the long work begins."""
        if self.output is None:
            return
        path = self.write(self.scene.select(torch.tensor([0])))
        smallest = scene_bytes(path) if path else 0
        size = self.budget.size_bytes
        if size is not None and smallest > size:
            raise ValueError(f"{size} bytes are too few: one Gaussian alone takes {smallest}")
        folder = next(parent for parent in self.output.resolve().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"{self.output}: {folder} is not a folder that can be written to")

    def count_of_bytes(self, size: float) -> int:
        """About how many Gaussians `size` bytes hold, from writing a sample of them."""
        sample = self.scene.select(torch.arange(0, len(self.scene), max(1, len(self.scene) // _SAMPLE)))
        path = self.write(sample)
        assert path is not None
        return round(len(sample) * size / scene_bytes(path))


def meet(bench: Bench, report: Report) -> Attempt:
    """The attempt that uses the budget best."""
    budget = bench.budget
    first, then = stretch(report, 0.0, SEARCH if bench.recover else 1.0), stretch(report, SEARCH, 1.0)
    if budget.size_bytes is not None:
        return _trimmed(bench.recovered(_fit_size(budget.size_bytes, bench, first), then), budget.size_bytes, bench)
    if budget.psnr is not None:
        simplified = _hold_quality(budget.psnr, bench, first)
        return simplified if bench.recover is None else _hold_recovered(budget.psnr, simplified, bench, then)
    return bench.recovered(bench.attempt(budget.count(len(bench.scene)), first), then)


def _fit_size(size: int, bench: Bench, report: Report) -> Attempt:
    best: Attempt | None = None

    def measure(count: int) -> float:
        nonlocal best
        attempt = bench.attempt(count, _share(report, bench))
        bench.trials.append(Trial(count, attempt.bytes, None))
        if attempt.bytes <= size:
            best = attempt
        return attempt.bytes

    largest_within(measure, size, most=len(bench.scene), guess=bench.count_of_bytes(0.985 * size))
    if best is None:
        fewest = bench.trials[-1]
        raise ValueError(f"{size} bytes are too few: {fewest.gaussians} Gaussians take {fewest.bytes}")
    return best


def _trimmed(attempt: Attempt, size: int, bench: Bench) -> Attempt:
    """The attempt without the least visible of its Gaussians where recovery has made its file too large."""
    while attempt.bytes > size:
        count = int(len(attempt.scene) * size / attempt.bytes * 0.998)
        attempt = bench.fewest_seen_dropped(attempt, count)
        bench.trials.append(Trial(count, attempt.bytes, None, recovered=True))
    return attempt


def _hold_quality(target: float, bench: Bench, report: Report) -> Attempt:
    best: Attempt | None = None

    def measure(count: int) -> float:
        nonlocal best
        attempt = bench.attempt(count, _share(report, bench))
        decibels = bench.judged(attempt)
        bench.trials.append(Trial(count, attempt.bytes, decibels))
        if decibels >= target:
            best = attempt
        return decibels

    total = len(bench.scene)
    smallest_holding(measure, target, most=total, guess=max(1, total // 4))
    if best is None:
        reached = max(trial.psnr or 0.0 for trial in bench.trials)
        raise ValueError(f"{target:g} dB cannot be held: all {total} Gaussians reach {reached:.2f} dB in this format")
    return best


def _hold_recovered(target: float, simplified: Attempt, bench: Bench, report: Report) -> Attempt:
    """A smaller count than that of `simplified` holds, too, once it is recovered: each try takes a whole recovery."""
    best, most = simplified, len(simplified.scene)

    def measure(count: int) -> float:
        nonlocal best
        done = sum(trial.recovered for trial in bench.trials) / RECOVERIES
        own = stretch(report, done, done + 1 / RECOVERIES)
        attempt = bench.recovered(bench.attempt(count, own), own)
        decibels = bench.judged(attempt)
        bench.trials.append(Trial(count, attempt.bytes, decibels, recovered=True))
        if decibels >= target and len(attempt.scene) < len(best.scene):
            best = attempt
        return decibels

    smallest_holding(measure, target, most=most, guess=round(0.7 * most), excess=0.3, tries=RECOVERIES)
    return best


def _share(report: Report, bench: Bench) -> Report:
    """The stretch of the progress that the next trial gets, when nobody knows how many there will be."""
    done = 1 - 0.6 ** len(bench.trials)
    return stretch(report, done, done + 0.4 * (1 - done))
