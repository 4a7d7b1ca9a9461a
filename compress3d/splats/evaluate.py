"""How good, how small and how fast is a scene, measured against the original that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Self

from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.formats import read_scene
from compress3d.splats.held_out import Compared, HeldOut, likeness
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from compress3d.splats.sizes import bytes_by_attribute, scene_bytes
from compress3d.splats.views import UP, Vector, sample_views
from secateur.console import Report, silent, stretch
from secateur.evaluation.chunks import ChunkStore, Gathering, Rows
from secateur.evaluation.naming import distinct_names
from secateur.evaluation.run import hash_path
from secateur.metrics.speed import Speed, measure_speed
from secateur.report.notebook import table_html
from secateur.report.record import Steps

SELF_REFERENCE = "the original's own renders"
"""Name of the reference when a scene is compared with what it was made from, rather than with photographs."""

PACKAGES = ("secateur", "torch", "numpy", "numba", "torchmetrics", "pillow")
RESOLUTION = 400
"""Width and height in pixels of the views that are sampled when no cameras are given."""

_VIEWS_TOGETHER = 8
"""Views that are kept together when they are finished."""

_TIMED_FRAMES = 4
_TIMED_REPEATS = 5


@dataclass(frozen=True, slots=True)
class SceneFile:
    """A scene and the file that holds it.

    Args:
        name: of the file or folder, without where it lies.
        gaussians: number of Gaussians.
        sh_degree: 0 to 3.
        bytes: everything that is needed to decode it.
        bytes_by_attribute: as `sizes.bytes_by_attribute`.
        speed: of rendering it; None where that was not measured.
    """

    name: str
    gaussians: int
    sh_degree: int
    bytes: int
    bytes_by_attribute: dict[str, int]
    speed: Speed | None = None

    @classmethod
    def describe(cls, path: Path, scene: SplatScene, speed: Speed | None = None) -> Self:
        """The scene that was read from, or written to, `path`."""
        name = path.resolve().parent.name if path.name == "meta.json" else path.name
        attributes = bytes_by_attribute(path, scene.sh_degree)
        return cls(name, len(scene), scene.sh_degree, scene_bytes(path), attributes, speed)

    @classmethod
    def in_memory(cls, scene: SplatScene, speed: Speed | None = None) -> Self:
        """A scene that no file holds: its bytes are those of its raw float32 tensors."""
        sizes = {name: 4 * tensor.numel() for name, tensor in scene.tensors().items() if tensor.numel()}
        return cls("(in memory)", len(scene), scene.sh_degree, sum(sizes.values()), sizes, speed)


@dataclass(frozen=True, slots=True)
class Quality:
    """How close images come to their reference, view by view.

    Args:
        reference: what the reference images are.
        width: of the images, in pixels.
        height: of the images, in pixels.
        mean_psnr: mean over views, in dB; infinite (null in JSON) where every view is equal.
        mean_ssim: mean over views.
        psnr: of each view.
        ssim: of each view.
    """

    reference: str
    width: int
    height: int
    mean_psnr: float
    mean_ssim: float
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]

    @classmethod
    def of(cls, rows: Rows, cameras: Cameras, reference: str) -> Self:
        """From rows "psnr" and "ssim", one a view."""
        decibels, similarity = rows["psnr"], rows["ssim"]
        return cls(
            reference,
            cameras.width,
            cameras.height,
            float(decibels.mean()),
            float(similarity.mean()),
            tuple(decibels.tolist()),
            tuple(similarity.tolist()),
        )


class Judge:
    """Compares scenes with an original through views that nothing else may have looked through.

    Args:
        original: what the scenes stand for.
        cameras: the held-out views.
    """

    def __init__(self, original: SplatScene, cameras: Cameras) -> None:
        self.original = original
        self.cameras = cameras
        self.held_out = HeldOut(original, cameras)

    @property
    def references(self) -> Float[Tensor, "C H W 3"] | None:
        """Renders of the original; None where they are so many that each is made when it is needed."""
        return self.held_out.held

    @cached_property
    def original_speed(self) -> Speed:
        """The time of rendering the original through the first few views."""
        return self.speed(self.original)

    def psnr(self, scene: SplatScene) -> float:
        """Mean PSNR in dB over the views."""
        return float(likeness(self.compared(scene).each(), similarity=False)["psnr"].mean())

    def quality(self, scene: SplatScene) -> Quality:
        """PSNR and SSIM over the views."""
        return Quality.of(likeness(self.compared(scene).each()), self.cameras, SELF_REFERENCE)

    def compared(self, scene: SplatScene) -> Compared:
        """The scene and the original, view by view."""
        return Compared(scene, self.held_out)

    def speed(self, scene: SplatScene) -> Speed:
        """The time of rendering the first few views."""
        return measure_speed(
            lambda frame: render(scene, self.cameras[frame]),
            frames=min(_TIMED_FRAMES, len(self.cameras)),
            repeats=_TIMED_REPEATS,
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scene file, and how close it comes to the reference."""

    file: SceneFile
    quality: Quality


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scene files compared with the one that they stand for.

    Args:
        reference: the original.
        candidates: what was compared with it.
        seconds: time by step.
        options: how the views were chosen.
    """

    reference: SceneFile
    candidates: tuple[Candidate, ...]
    seconds: dict[str, float]
    options: dict[str, object]

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        from compress3d.splats.tables import evaluation_table  # which names this class

        return table_html(evaluation_table(self))


def evaluate(
    reference: Path,
    candidates: Sequence[Path],
    *,
    cameras: Cameras | None = None,
    views: int = 16,
    up: Vector = UP,
    seed: int = 0,
    progress: Report = silent,
    store: ChunkStore | None = None,
) -> tuple[Evaluation, Judge, list[SplatScene]]:
    """Measure scene files against the scene that they stand for.

    Views are rendered, compared and let go, one at a time.

    Args:
        reference: file of the original.
        candidates: files to compare with it.
        cameras: views to compare through; sampled by the original's shape when None.
        views: how many are sampled.
        up: world direction that is up in them.
        seed: of the sampling.
        progress: told how far it is.
        store: where finished views are kept, so that a run that was stopped goes on; None: nowhere.

    Returns:
        the record, the judge, and the candidates' scenes in order.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no splat scene.
    """
    steps = Steps()
    with steps("read"):
        original = read_scene(reference)
        scenes = [read_scene(path) for path in candidates]
    options: dict[str, object] = {"seed": seed, "up": up, "views_given": len(cameras or ())}
    if cameras is None:
        cameras = sample_views(original, views, RESOLUTION, RESOLUTION, seed=seed, up=up)
    options["judged_on_views"] = len(cameras)
    progress(0.0, "rendering the reference")
    with steps("judge"):
        judge = Judge(original, cameras)
        measured = []
        for index, (path, scene) in enumerate(zip(candidates, scenes, strict=True)):
            report = stretch(progress, (index + 0.5) / (len(scenes) + 0.5), (index + 1.5) / (len(scenes) + 0.5))
            report(0.0, f"judging {path.name}")
            speed = judge.speed(scene)
            quality = (
                judge.quality(scene) if store is None else _gathered(judge, scene, (reference, path), store, report)
            )
            measured.append(Candidate(SceneFile.describe(path, scene, speed), quality))
        described = SceneFile.describe(reference, original, judge.original_speed)
    names = distinct_names([one.file.name for one in measured], candidates, {described.name})
    measured = [replace(one, file=replace(one.file, name=name)) for one, name in zip(measured, names, strict=True)]
    record = Evaluation(described, tuple(measured), steps.seconds, options)
    return record, judge, scenes


def _gathered(judge: Judge, scene: SplatScene, files: tuple[Path, Path], store: ChunkStore, report: Report) -> Quality:
    """The quality of a scene; views that a former run finished are taken from the store.

    Args:
        judge: of the original.
        scene: to judge.
        files: of the original and of the scene.
        store: of finished views.
        report: told how far it is.
    """
    cameras = judge.cameras
    identity = {
        "scenes": [hash_path(file) for file in files],
        "cameras": [cameras.sha256, cameras.width, cameras.height],
        "device": str(scene.means.device),
        "secateur": version("secateur"),
    }
    gathering = Gathering(
        files[1].name, identity, judge.compared(scene), likeness, chunk=_VIEWS_TOGETHER, items_are="views"
    )
    return Quality.of(store.gather(gathering, report), cameras, SELF_REFERENCE)
