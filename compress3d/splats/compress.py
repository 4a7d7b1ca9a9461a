"""Compress a splat scene to a budget: a share or count of Gaussians, a file size, or a quality to hold."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from compress3d.cameras import Cameras
from compress3d.splats.evaluate import PACKAGES, RESOLUTION, Judge, Quality, SceneFile
from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.rasterize.contributions import Observation, observe
from compress3d.splats.refit import Refit
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene
from compress3d.splats.simplify import simplify
from compress3d.splats.sizes import scene_bytes
from compress3d.splats.views import sample_views, split_views
from secateur.console import Report, silent, stretch
from secateur.files import replacing_file, replacing_folder
from secateur.metrics.speed import Speed
from secateur.quantities import parse_decibels, parse_keep, parse_size
from secateur.report.record import Machine, Steps, describe_machine, package_versions
from secateur.search import largest_within, smallest_holding

VIEWS = 48
"""Views that are sampled when no cameras are given: half to score with, half held out to judge with."""

_SAMPLE = 20_000
_SAME_VIEW = 1e-3


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be left of a scene; at most one of the three, none of them keeps everything.

    Args:
        keep: share of the Gaussians (a float in (0, 1]) or their count (an int).
        size_bytes: bytes that the file may have.
        psnr: dB that the file must hold against the original's own renders, on views held out from the compression.

    Raises:
        ValueError: more than one is given, or one is out of range.
    """

    keep: float | int | None = None
    size_bytes: int | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("keep", "size_bytes", "psnr") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a scene is compressed to one budget, got {' and '.join(given)}")
        if self.keep is not None:
            parse_keep(self.keep)
        if self.size_bytes is not None:
            parse_size(self.size_bytes)
        if self.psnr is not None:
            parse_decibels(self.psnr)

    @classmethod
    def parse(cls, keep: float | int | str | None, size_bytes: int | str | None, psnr: float | str | None) -> Self:
        """A budget from amounts as people write them."""
        return cls(
            None if keep is None else parse_keep(keep),
            None if size_bytes is None else parse_size(size_bytes),
            None if psnr is None else parse_decibels(psnr),
        )

    def count(self, total: int) -> int:
        """Gaussians that `keep` leaves of `total`: a share rounds down, but leaves at least one."""
        if self.keep is None:
            return total
        if isinstance(self.keep, int):
            return min(self.keep, total)
        return max(1, int(total * self.keep))


@dataclass(frozen=True, slots=True)
class Trial:
    """A count that a search tried, the bytes of its file, and its PSNR in dB where that was looked at."""

    gaussians: int
    bytes: int
    psnr: float | None


@dataclass(frozen=True, slots=True)
class Compression:
    """One scene, compressed once.

    Args:
        budget: what was asked for.
        original: the scene before.
        compressed: the scene after, as its file holds it.
        quality: of the file, read back, on the held-out views; of the scene in memory where no file was written.
        quality_in_memory: of the scene before the file's format rounded it.
        trials: what the search for a size or a quality tried, in order.
        seconds: time by step.
        machine: where it ran.
        versions: of the packages that matter.
        options: everything else that decides the result.
    """

    budget: Budget
    original: SceneFile
    compressed: SceneFile
    quality: Quality
    quality_in_memory: Quality
    trials: tuple[Trial, ...]
    seconds: dict[str, float]
    machine: Machine
    versions: dict[str, str]
    options: dict[str, object]


def compress(
    scene: SplatScene,
    output: str | Path | None = None,
    *,
    keep: float | int | str | None = None,
    size_bytes: int | str | None = None,
    psnr: float | str | None = None,
    cameras: Cameras | None = None,
    sh_degree: int | None = None,
    seed: int = 0,
    source: str | Path | None = None,
    progress: Report = silent,
) -> tuple[SplatScene, Compression]:
    """Make a scene smaller, and measure what that cost.

    Gaussians are merged and the rest refitted to exactly the count that the budget leaves. Quality is that of the
    written file, read back: PSNR and SSIM against the original's own renders, on views that the compression never
    looked through. Keeping everything changes nothing, bit for bit.

    Args:
        scene: the original; it is not changed.
        output: file to write, in the format that its name says; it appears only when all is done. A size needs one.
        keep: share ("25%", 0.25) or count (50_000, "50k") of the Gaussians to keep.
        size_bytes: size that the file must not exceed (2_000_000, "2MB"); it comes within 3 % of it.
        psnr: dB that the written file must hold; the smallest count that does is searched for.
        cameras: views of the scene, at least two: every second one is held out to judge with; where the others are few,
            sampled views join them, because a refit to few views fits no other. None: all are sampled by shape.
        sh_degree: spherical-harmonic coefficients above this degree (0 to 3) are dropped; where there were any, what is
            left is refitted.
        seed: of the sampled views.
        source: the file that `scene` was read from: the record names it and counts its bytes.
        progress: told how far it is.

    Returns:
        the smaller scene, before the file's format rounds it, and the record.

    Raises:
        ValueError: there is more than one budget, or it cannot be met, or the output's name is of no known format.
    """
    budget = Budget.parse(keep, size_bytes, psnr)
    path = None if output is None else Path(output)
    file = None if source is None else Path(source)
    return Compressor(scene, cameras, sh_degree=sh_degree, seed=seed, source=file).compress(budget, path, progress)


class Compressor:
    """Compresses one scene, to one budget after another, and does once what all of them need.

    Args are those of `compress`.
    """

    def __init__(
        self,
        scene: SplatScene,
        cameras: Cameras | None = None,
        *,
        sh_degree: int | None = None,
        seed: int = 0,
        source: Path | None = None,
    ) -> None:
        if sh_degree is not None and sh_degree not in SH_COEFFICIENTS:
            raise ValueError(f"sh_degree must be 0, 1, 2 or 3, got {sh_degree}")
        self.options: dict[str, object] = {"seed": seed, "sh_degree": sh_degree, "views_given": len(cameras or ())}
        if cameras is None:
            cameras = sample_views(scene, VIEWS, RESOLUTION, RESOLUTION, seed=seed)
        score_views, judge_views = split_views(cameras)
        self.cameras = _topped_up(score_views, judge_views, scene, seed)
        self.judge = Judge(scene, judge_views)
        self.source = source
        self.scene = scene if sh_degree is None else scene.with_sh_degree(min(sh_degree, scene.sh_degree))
        self._observation: Observation | None = None

    def compress(self, budget: Budget, output: Path | None, report: Report = silent) -> tuple[SplatScene, Compression]:
        """As `compress`; what an earlier call has done already is not in this one's seconds."""
        if budget.size_bytes is not None and output is None:
            raise ValueError("a size needs an output, because the format decides how many bytes a Gaussian takes")
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            bench = _Bench(self, Path(folder), output)
            bench.check(budget)
            report(0.0, "rendering the original")
            with bench.steps("render the original"):
                _ = self.judge.references
            best = _meet(budget, bench, stretch(report, 0.05, 0.9))
            report(0.9, "judging")
            record = _record(budget, bench, best)
            if best.path is not None and output is not None:
                _publish(best.path, output)
        report(1.0, "done")
        return best.scene, record

    def simplify(self, count: int, report: Report) -> SplatScene:
        """The scene at `count` Gaussians, refitted to the original; all of them, whole, are the scene itself."""
        original = self.judge.original
        if count == len(original) and self.scene.sh_degree == original.sh_degree:
            return self.scene
        if self._observation is None:
            observing, views = stretch(report, 0.0, 0.3), len(self.cameras)
            self._observation = observe(original, self.cameras, lambda done: observing(done / views, "observe"))
            report = stretch(report, 0.3, 1.0)
        if count == len(original):
            images = self._observation.images.numpy()
            return Refit()(self.scene, self.cameras, images, lambda done: report(done, "refit"))
        return simplify(self.scene, count, self.cameras, observation=self._observation, progress=report)


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """A scene at one count, and the file that holds it."""

    scene: SplatScene
    path: Path | None
    bytes: int


class _Bench:
    """Where one budget is met: brings the scene to one count after another, writes each and reads it back."""

    def __init__(self, compressor: Compressor, folder: Path, output: Path | None) -> None:
        self.compressor = compressor
        self.scene = compressor.scene
        self.judge = compressor.judge
        self.folder = folder
        self.output = output
        self.steps = Steps()
        self.trials: list[Trial] = []

    def attempt(self, count: int, report: Report) -> _Attempt:
        """The scene at `count` Gaussians, written."""
        with self.steps("simplify"):
            small = self.compressor.simplify(count, report)
        with self.steps("write"):
            path = self.write(small)
        return _Attempt(small, path, scene_bytes(path) if path else 0)

    def write(self, scene: SplatScene) -> Path | None:
        """Write `scene` in the output's format, into a folder of its own; None when there is no output."""
        if self.output is None:
            return None
        path = Path(tempfile.mkdtemp(dir=self.folder)) / self.output.name
        if path.name == "meta.json":
            path = path.parent / self.output.resolve().parent.name / path.name
        try:
            write_scene(scene, path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), str(self.output))) from error
        return path

    def decoded(self, attempt: _Attempt) -> SplatScene:
        """What a reader of the attempt's file gets."""
        if attempt.path is None:
            return attempt.scene
        with self.steps("read back"):
            return read_scene(attempt.path)

    def check(self, budget: Budget) -> None:
        """Raise an error where the output can never be written, before the long work begins."""
        if self.output is None:
            return
        path = self.write(self.scene.select(torch.tensor([0])))
        smallest = scene_bytes(path) if path else 0
        if budget.size_bytes is not None and smallest > budget.size_bytes:
            raise ValueError(f"{budget.size_bytes} bytes are too few: one Gaussian alone takes {smallest}")
        folder = next(parent for parent in self.output.resolve().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"{self.output}: {folder} is not a folder that can be written to")

    def count_of_bytes(self, size: int) -> int:
        """About how many Gaussians `size` bytes hold, from writing a sample of them."""
        sample = self.scene.select(torch.arange(0, len(self.scene), max(1, len(self.scene) // _SAMPLE)))
        path = self.write(sample)
        assert path is not None
        return round(len(sample) * size / scene_bytes(path))


def _topped_up(score_views: Cameras, judge_views: Cameras, scene: SplatScene, seed: int) -> Cameras:
    """`score_views`, and sampled ones up to half of `VIEWS`; none of them is a view to judge with."""
    missing = VIEWS // 2 - len(score_views)
    if missing <= 0:
        return score_views
    sampled = sample_views(scene, missing, score_views.width, score_views.height, seed=seed + 1)
    distances = (sampled.viewmats[:, None] - judge_views.viewmats).abs().amax(dim=(2, 3)).amin(dim=1)
    other = sampled[distances > _SAME_VIEW]
    viewmats, Ks = torch.cat([score_views.viewmats, other.viewmats]), torch.cat([score_views.Ks, other.Ks])
    return replace(score_views, viewmats=viewmats, Ks=Ks)


def _meet(budget: Budget, bench: _Bench, report: Report) -> _Attempt:
    """The attempt that uses the budget best."""
    if budget.size_bytes is not None:
        return _fit_size(budget.size_bytes, bench, report)
    if budget.psnr is not None:
        return _hold_quality(budget.psnr, bench, report)
    return bench.attempt(budget.count(len(bench.scene)), report)


def _fit_size(size: int, bench: _Bench, report: Report) -> _Attempt:
    best: _Attempt | None = None

    def measure(count: int) -> float:
        nonlocal best
        attempt = bench.attempt(count, _share(report, bench))
        bench.trials.append(Trial(count, attempt.bytes, None))
        if attempt.bytes <= size:
            best = attempt
        return attempt.bytes

    largest_within(measure, size, most=len(bench.scene), guess=bench.count_of_bytes(size))
    if best is None:
        raise ValueError(
            f"{size} bytes are too few: {bench.trials[-1].gaussians} Gaussians take {bench.trials[-1].bytes}"
        )
    return best


def _hold_quality(target: float, bench: _Bench, report: Report) -> _Attempt:
    best: _Attempt | None = None

    def measure(count: int) -> float:
        nonlocal best
        attempt = bench.attempt(count, _share(report, bench))
        decibels = bench.judge.psnr(bench.decoded(attempt))
        bench.trials.append(Trial(count, attempt.bytes, decibels))
        if decibels >= target:
            best = attempt
        return decibels

    total = len(bench.scene)
    smallest_holding(measure, target, most=total, guess=max(1, total // 4))
    if best is None:
        reached = (
            f"all {total} Gaussians reach {max(trial.psnr or 0.0 for trial in bench.trials):.2f} dB in this format"
        )
        raise ValueError(f"{target:g} dB cannot be held: {reached}")
    return best


def _share(report: Report, bench: _Bench) -> Report:
    """The stretch of the progress that the next trial gets, when nobody knows how many there will be."""
    done = 1 - 0.6 ** len(bench.trials)
    return stretch(report, done, done + 0.4 * (1 - done))


def _record(budget: Budget, bench: _Bench, best: _Attempt) -> Compression:
    """Judge what came out."""
    decoded, compressor, judge = bench.decoded(best), bench.compressor, bench.judge
    with bench.steps("judge"):
        quality = judge.quality(decoded)
        in_memory = quality if decoded is best.scene else judge.quality(best.scene)
        before = _describe(compressor.source, judge.original, judge.original_speed)
        after = _describe(best.path, decoded, judge.speed(decoded))
    views = {"scored_on_views": len(compressor.cameras), "judged_on_views": len(judge.cameras)}
    return Compression(
        budget=budget,
        original=before,
        compressed=after,
        quality=quality,
        quality_in_memory=in_memory,
        trials=tuple(bench.trials),
        seconds=bench.steps.seconds,
        machine=describe_machine(),
        versions=package_versions(*PACKAGES),
        options=compressor.options | views,
    )


def _describe(path: Path | None, scene: SplatScene, speed: Speed) -> SceneFile:
    return SceneFile.in_memory(scene, speed) if path is None else SceneFile.describe(path, scene, speed)


def _publish(trial: Path, output: Path) -> None:
    """Put the file, or the folder of files, that a trial wrote in the output's place."""
    if trial.is_dir() or trial.name == "meta.json":
        source, target = (trial, output) if trial.is_dir() else (trial.parent, output.parent)
        with replacing_folder(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
        return
    with replacing_file(output) as temporary:
        shutil.copyfile(trial, temporary)
