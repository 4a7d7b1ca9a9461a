"""Compress a splat scene to a budget: a share or count of Gaussians, a file size, or a quality to hold."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from compress3d.cameras import Cameras
from compress3d.splats.bands import HeldBands, drop_bands, reduced_degree
from compress3d.splats.budget import Budget
from compress3d.splats.evaluate import PACKAGES, RESOLUTION, Judge, Quality, SceneFile
from compress3d.splats.formats.sog_files import replacing_sog
from compress3d.splats.pictures import Pictures, Renders
from compress3d.splats.rasterize.contributions import Observation, observe
from compress3d.splats.recover import RECOVERY, Recover
from compress3d.splats.refit import Refit
from compress3d.splats.rounding import Rounding, has_rounding, rounding_for
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene
from compress3d.splats.simplify import simplify
from compress3d.splats.trials import Attempt, Bench, Trial, meet
from compress3d.splats.views import UP, Vector, sample_views, split_views
from secateur.console import Report, silent, stretch
from secateur.files import replacing_file
from secateur.metrics.speed import Speed
from secateur.report.notebook import table_html
from secateur.report.record import Machine, describe_machine, package_versions, to_json

if TYPE_CHECKING:
    from secateur.training import FitRecord

VIEWS = 48
"""Views that are sampled when no cameras are given: half to score with, half held out to judge with."""

TEACHING_VIEWS, VALIDATION_VIEWS = 64, 6
"""Views of the original that a recovery learns from, the scored ones among them, and that it chooses its weights by."""

ROUNDED_SHARE = 0.25
"""Share of a recovery's steps, the last ones, that are made through the rounding of the file's format."""

DEGREE_TOLERANCE = 0.1
"""dB that the degree "auto" may cost a simplified scene, before recovery."""

_SAME_VIEW = 1e-3
_TEACHING_BYTES = 1 << 29


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
        recovery: the fits that won back quality, in order: the last ones, where a quality was searched for.
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
    recovery: tuple[FitRecord, ...]
    seconds: dict[str, float]
    machine: Machine
    versions: dict[str, str]
    options: dict[str, object]

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        from compress3d.splats.tables import compressions_table  # which names this class

        return table_html(compressions_table([self]))


def compress(
    scene: SplatScene,
    output: str | Path | None = None,
    *,
    keep: float | int | str | None = None,
    size_bytes: int | str | None = None,
    psnr: float | str | None = None,
    recover: int | Recover = RECOVERY,
    photographs: Pictures | None = None,
    cameras: Cameras | None = None,
    sh_degree: int | Literal["auto"] | None = None,
    sh_keep: float = 1.0,
    up: Vector = UP,
    seed: int = 0,
    source: str | Path | None = None,
    progress: Report = silent,
) -> tuple[SplatScene, Compression]:
    """Make a scene smaller, and measure what that cost.

    Gaussians are merged and the rest refitted to exactly the count that the budget leaves; then gradient steps recover
    what that cost, the last of them through the rounding of the file's format. Quality is that of the written file,
    read back: PSNR and SSIM against the original's own renders, on views that the compression never looked through.
    Keeping everything changes nothing, bit for bit.

    Args:
        scene: the original; it is not changed.
        output: file to write, in the format that its name says; it appears only when all is done. A size needs one.
        keep: share ("25%", 0.25) or count (50_000, "50k") of the Gaussians to keep.
        size_bytes: size that the file must not exceed (2_000_000, "2MB"); it comes within 3 % of it.
        psnr: dB that the written file must hold; the smallest count that does is searched for.
        recover: gradient steps, or how they are made; 0 leaves it at merging and refitting, which takes seconds.
        photographs: of the scene, in its frame: they are learnt from beside the original's renders.
        cameras: views of the scene, at least two: every second one is held out to judge with; where the others are few,
            sampled views join them, because a refit to few views fits no other. None: all are sampled by shape.
        sh_degree: spherical-harmonic coefficients above this degree (0 to 3) are dropped; where there were any, what is
            left is refitted. "auto" takes the lowest that costs the smaller scene no more than 0.1 dB.
        sh_keep: share, 0 to 1, of the spherical-harmonic coefficients above degree 0 to keep: those that the views
            would miss most, Gaussian by Gaussian. The others are 0, which SOG and SPZ store in next to no bytes.
        up: world direction that is up in the sampled views.
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
    compressor = Compressor(
        scene,
        cameras,
        recover=recover,
        photographs=photographs,
        sh_degree=sh_degree,
        sh_keep=sh_keep,
        up=up,
        seed=seed,
        source=file,
    )
    return compressor.compress(budget, path, progress)


class Compressor:
    """Compresses one scene, to one budget after another, and does once what all of them need.

    Args are those of `compress`.
    """

    def __init__(
        self,
        scene: SplatScene,
        cameras: Cameras | None = None,
        *,
        recover: int | Recover = RECOVERY,
        photographs: Pictures | None = None,
        sh_degree: int | Literal["auto"] | None = None,
        sh_keep: float = 1.0,
        up: Vector = UP,
        seed: int = 0,
        source: Path | None = None,
    ) -> None:
        if sh_degree not in (None, "auto", *SH_COEFFICIENTS):
            raise ValueError(f"sh_degree must be 0, 1, 2 or 3, or 'auto', got {sh_degree!r}")
        if not 0 <= sh_keep <= 1:
            raise ValueError(f"sh_keep must be 0 to 1, got {sh_keep}")
        self.recovery = Recover(steps=recover, seed=seed) if isinstance(recover, int) else recover
        self.photographs = photographs
        self.options: dict[str, object] = {"seed": seed, "sh_degree": sh_degree, "views_given": len(cameras or ())}
        self.options |= {
            "sh_keep": sh_keep,
            "up": up,
            "recover": to_json(self.recovery),
            "photographs": 0 if photographs is None else len(photographs.cameras),
        }
        if cameras is None:
            cameras = sample_views(scene, VIEWS, RESOLUTION, RESOLUTION, seed=seed, up=up)
        score_views, judge_views = split_views(cameras)
        self.cameras = _topped_up(score_views, VIEWS // 2, judge_views, scene, seed + 1, up)
        self.judge = Judge(scene, judge_views)
        self.source = source
        self.scene = scene.with_sh_degree(min(sh_degree, scene.sh_degree)) if isinstance(sh_degree, int) else scene
        self._lowers_degree, self._sh_keep = sh_degree == "auto", sh_keep
        self._observation: Observation | None = None
        self._seed, self._up = seed, up
        self._pictures: tuple[list[Pictures], Pictures] | None = None
        self._fits: tuple[FitRecord, ...] = ()

    def compress(self, budget: Budget, output: Path | None, report: Report = silent) -> tuple[SplatScene, Compression]:
        """As `compress`; what an earlier call has done already is not in this one's seconds."""
        if budget.size_bytes is not None and output is None:
            raise ValueError("a size needs an output, because the format decides how many bytes a Gaussian takes")
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            recover = self.recover if self.recovery.steps else None
            bench = Bench(self.scene, self.simplify, recover, self.cameras, self.judge, budget, Path(folder), output)
            bench.check()
            report(0.0, "rendering the original")
            with bench.steps("render the original"):
                _ = self.judge.references
            best = meet(bench, stretch(report, 0.05, 0.9))
            report(0.9, "judging")
            record = self._record(bench, best)
            if best.path is not None and output is not None:
                _publish(best.path, output)
        report(1.0, "done")
        return best.scene, record

    def simplify(self, count: int, report: Report) -> SplatScene:
        """The scene at `count` Gaussians, refitted to the original; all of them, whole, are the scene itself."""
        small = self._merged(count, report)
        if self._lowers_degree and self._observation is not None and small is not self.scene:
            small = reduced_degree(small, self.cameras, self._observation.images, DEGREE_TOLERANCE)
        return drop_bands(small, self.cameras, self._sh_keep)

    def _merged(self, count: int, report: Report) -> SplatScene:
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

    def recover(self, scene: SplatScene, output: Path | None, options: dict[str, int], report: Report) -> SplatScene:
        """A simplified scene after gradient steps, the last of them through the rounding of the output's format."""
        if scene is self.judge.original:
            return scene
        pictures, validation = self._teachers(stretch(report, 0.0, 0.1))
        rounded = max(1, round(ROUNDED_SHARE * self.recovery.steps)) if output and has_rounding(output) else 0
        first = replace(self.recovery, steps=self.recovery.steps - rounded)
        learning, finishing = stretch(report, 0.1, 0.75), stretch(report, 0.75, 1.0)
        held = HeldBands(scene) if self._sh_keep < 1 else None
        scene, record = first(scene, pictures, validation, rounding=held, report=_titled("recover", learning))
        self._fits = (record,)
        if output and rounded:
            step, told = rounding_for(output, scene, **options), _titled("recover, rounded", finishing)
            if held is not None:
                step = _one_after_other(held, step)
            scene, record = self.recovery.finer(rounded)(scene, pictures, validation, rounding=step, report=told)
            scene, self._fits = step(scene), (*self._fits, record)
        return scene

    def _teachers(self, report: Report) -> tuple[list[Pictures], Pictures]:
        """Pictures to learn from and to choose by; rendered once."""
        if self._pictures is None:
            pixels = self.cameras.width * self.cameras.height
            count = max(len(self.cameras), min(TEACHING_VIEWS, _TEACHING_BYTES // (16 * pixels)))
            judged, original = self.judge.cameras, self.judge.original
            cameras = _topped_up(self.cameras, count, judged, original, self._seed + 2, self._up)
            other = _topped_up(cameras[:0], VALIDATION_VIEWS, judged, original, self._seed + 3, self._up)
            total = len(cameras) + len(other)
            renders = Renders.of(self.judge.original, cameras, lambda done: report(done / total, "render the teacher"))
            chosen_by = Renders.of(self.judge.original, other)
            self._pictures = [renders, *([] if self.photographs is None else [self.photographs])], chosen_by
        return self._pictures

    def _record(self, bench: Bench, best: Attempt) -> Compression:
        """Judge what came out."""
        decoded, judge = bench.decoded(best), self.judge
        with bench.steps("judge"):
            quality = judge.quality(decoded)
            in_memory = quality if decoded is best.scene else judge.quality(best.scene)
            before = _describe(self.source, judge.original, judge.original_speed)
            after = _describe(best.path, decoded, judge.speed(decoded))
        views = {"scored_on_views": len(self.cameras), "judged_on_views": len(judge.cameras)}
        return Compression(
            budget=bench.budget,
            original=before,
            compressed=after,
            quality=quality,
            quality_in_memory=in_memory,
            trials=tuple(bench.trials),
            recovery=self._fits,
            seconds=bench.steps.seconds,
            machine=describe_machine(),
            versions=package_versions(*PACKAGES),
            options=self.options | views | bench.writer_options(len(best.scene)),
        )


def _topped_up(cameras: Cameras, count: int, avoided: Cameras, scene: SplatScene, seed: int, up: Vector) -> Cameras:
    """`cameras`, and sampled ones up to `count`; none of these is one of the `avoided`."""
    missing = count - len(cameras)
    if missing <= 0:
        return cameras
    sampled = sample_views(scene, missing, cameras.width, cameras.height, seed=seed, up=up)
    distances = (sampled.viewmats[:, None] - avoided.viewmats).abs().amax(dim=(2, 3)).amin(dim=1)
    other = sampled[distances > _SAME_VIEW]
    viewmats, Ks = torch.cat([cameras.viewmats, other.viewmats]), torch.cat([cameras.Ks, other.Ks])
    return replace(cameras, viewmats=viewmats, Ks=Ks)


def _one_after_other(first: Rounding, then: Rounding) -> Rounding:
    return lambda scene: then(first(scene))


def _titled(title: str, report: Report) -> Report:
    return lambda done, said: report(done, f"{title}: {said}" if said else title)


def _describe(path: Path | None, scene: SplatScene, speed: Speed) -> SceneFile:
    return SceneFile.in_memory(scene, speed) if path is None else SceneFile.describe(path, scene, speed)


def _publish(trial: Path, output: Path) -> None:
    """Put the file, or the folder of files, that a trial wrote in the output's place."""
    if trial.is_dir() or trial.name == "meta.json":
        source, target = (trial, output) if trial.is_dir() else (trial.parent, output.parent)
        with replacing_sog(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
        return
    with replacing_file(output) as temporary:
        shutil.copyfile(trial, temporary)
