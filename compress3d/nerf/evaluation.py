"""`secateur evaluate` for neural fields: how close, how small and how fast candidates are beside a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.captures import Capture, Split, read_capture
from compress3d.captures.capture import WHITE
from compress3d.devices import device_named
from compress3d.nerf.evaluate import beside_photograph
from compress3d.nerf.field import Field
from compress3d.nerf.files import load_field
from compress3d.nerf.record import KIND, subject_of, timings
from compress3d.nerf.render import render
from compress3d.nerf.report import evaluation_page, shown_views
from compress3d.nerf.teacher import views_around
from compress3d.nerf.train import PACKAGES
from compress3d.photographs import PHOTOGRAPHS, photographs_protocol, psnr_of_pair
from compress3d.splats.evaluate import Quality
from compress3d.splats.views import AXES
from secateur.console import Report, progress_bar, silent
from secateur.evaluation.evaluator import Evaluated
from secateur.evaluation.measurements import timing_details
from secateur.evaluation.merge import candidate_pairs
from secateur.evaluation.naming import distinct_names
from secateur.evaluation.record import EvaluationRecord, Measurement, Noise, Subject
from secateur.evaluation.run import Start
from secateur.metrics.image import psnr, ssim
from secateur.metrics.memory import PeakMemory, measure_peak_memory
from secateur.metrics.speed import Speed, measure_speed
from secateur.report.record import Steps

REFERENCE_RENDERS = "the reference's own renders"

_SIZE = 400
_TIMED_VIEWS, _TIMED_REPEATS = 2, 3


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """What fields are judged by.

    Args:
        cameras: C cameras.
        indices: of the cameras that count.
        capture: photographs of those cameras; None: the reference's renders stand for them.
    """

    cameras: Cameras
    indices: Sequence[int]
    capture: Capture | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the views that count."""
        if self.capture is not None:
            return tuple(self.capture.names[index] for index in self.indices)
        return tuple(f"View {index + 1}" for index in self.indices)


@dataclass(eq=False)
class Seen:
    """What was found of one field.

    Args:
        psnr: of each view in dB; empty for a reference whose own renders are compared with.
        ssim: of each view.
        pictures: (H, W, 3) of the views that the page shows.
    """

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    pictures: list[Float[Tensor, "H W 3"]] = field(default_factory=list)

    def quality(self, views: Views) -> Quality | None:
        """Of all views; None where none was looked at."""
        if not self.psnr:
            return None
        rows = {"psnr": torch.tensor(self.psnr).double(), "ssim": torch.tensor(self.ssim).double()}
        return Quality.of(rows, views.cameras, REFERENCE_RENDERS if views.capture is None else PHOTOGRAPHS)


def evaluate_files(
    reference: Path,
    candidates: list[Path],
    output: Path,
    capture: Path | None = None,
    long_side: int | None = None,
    split: Split | None = None,
    cameras: Path | None = None,
    views: int = 16,
    up: str = "-y",
    seed: int = 0,
    device: str | None = None,
) -> Evaluated:
    """`secateur evaluate` for fields; views are sampled by no chance, so that the seed changes nothing.

    Args:
        reference: the field that the candidates stand for.
        candidates: other fields.
        output: nothing of its own is written there.
        capture: photographs to judge all of them by, the reference too: those of the test split, or all without one.
        long_side: the most pixels of the photographs' longer side.
        split: which photographs judge.
        cameras: views to render, instead of those around the reference's box.
        views: how many of those.
        up: axis of the world that points up in them.
        seed: see above.
        device: where fields are; None: on CUDA where there is some.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is no field, there is no such device, or photographs and cameras are both given.
    """
    start, clock, where = Start.now(), Steps(), device_named(device)
    if capture is not None and cameras is not None:
        raise ValueError("fields are judged by photographs or through cameras: give --capture or --cameras, not both")
    paths = [reference, *candidates]
    with progress_bar() as progress:
        with clock("read"):
            fields = [load_field(path).to(where) for path in paths]
            judging = _views(fields[0], capture, long_side, split, cameras, views, up)
        with clock("judge"):
            shown = shown_views(judging.indices)
            originals, found = judge(fields, judging, shown, progress)
        with clock("time"):
            progress(0.95, "timing")
            times = [_timed(one, judging) for one in fields]
    names = [reference.name, *distinct_names([one.name for one in candidates], candidates, {reference.name})]
    first = found[0] if judging.capture is not None else None
    subjects = [_subject(*one, judging, first) for one in zip(names, paths, fields, found, times, strict=True)]
    record = EvaluationRecord(
        kind=KIND,
        runs=(start.run(clock.seconds, PACKAGES, {}, times[0][0].threads),),
        protocol=_protocol(judging),
        reference=subjects[0],
        candidates=tuple(subjects[1:]),
        pairs=candidate_pairs(subjects[1:]),
    )
    pictures = [one.pictures for one in found[1:]]
    of_views = [judging.names[list(judging.indices).index(index)] for index in shown]
    original = "Photograph" if judging.capture is not None else "Reference"
    return Evaluated(record, evaluation_page(record, original, of_views, originals, pictures, shown))


@torch.no_grad()
def judge(
    fields: Sequence[Field], views: Views, shown: Sequence[int], report: Report = silent
) -> tuple[list[Float[Tensor, "H W 3"]], list[Seen]]:
    """What each field, the reference first, looks like in each view; pictures only of `shown` are kept.

    Returns:
        the pictures that are compared with, of `shown`; and what was found of each field.
    """
    found, originals = [Seen() for _ in fields], []
    for done, index in enumerate(views.indices):
        report(0.95 * done / len(views.indices), "judging")
        wanted: Tensor | None = None
        for one, seen in zip(fields, found, strict=True):
            if views.capture is not None:
                image, wanted = pair = beside_photograph(one, views.capture, index)
                seen.psnr.append(psnr_of_pair(pair, views.capture, index))
                seen.ssim.append(float(ssim(image[None], wanted[None])))
            else:
                image = render(one, views.cameras, index, WHITE).image.clamp(0, 1)
                if wanted is None:
                    wanted = image
                else:
                    seen.psnr.append(float(psnr(image[None], wanted[None])))
                    seen.ssim.append(float(ssim(image[None], wanted[None])))
            if index in shown:
                seen.pictures.append(image)
        if index in shown and wanted is not None:
            originals.append(wanted)
    return originals, found


def _views(
    reference: Field,
    capture: Path | None,
    long_side: int | None,
    split: Split | None,
    cameras: Path | None,
    views: int,
    up: str,
) -> Views:
    if capture is not None:
        photographs = read_capture(capture, split=split, long_side=long_side)
        indices = photographs.test.tolist() or list(range(len(photographs)))
        return Views(photographs.cameras, indices, photographs)
    if cameras is None:
        return Views(views_around(reference.box, views, _SIZE, AXES[up]), range(views))
    given = Cameras.load(cameras)
    return Views(given, range(len(given)))


def _timed(one: Field, views: Views) -> tuple[Speed, PeakMemory]:
    """Of rendering the first few views, and of one of them."""
    draw = partial(render, one, views.cameras)
    frames = min(_TIMED_VIEWS, len(views.indices))
    speed = measure_speed(lambda frame: draw(views.indices[frame]), frames, repeats=_TIMED_REPEATS)
    return speed, measure_peak_memory(lambda: draw(views.indices[0]), one.device)


def _subject(
    name: str, path: Path, one: Field, seen: Seen, cost: tuple[Speed, PeakMemory], views: Views, first: Seen | None
) -> Subject:
    speed, memory = cost
    before = None if first is None or first is seen else first.quality(views)
    subject = subject_of(name, path, one, views.names, seen.quality(views), before)
    peak = Measurement(float(memory.bytes), "bytes", "lower", "peak memory of a view", noise=Noise("counted", 0.0))
    return replace(
        subject,
        measurements={**subject.measurements, "peak_memory": peak, **timings(speed)},
        details={"speed": timing_details(speed)},
    )


def _protocol(views: Views) -> dict[str, Any]:
    if views.capture is not None:
        return photographs_protocol(views.capture, views.indices)
    cameras = views.cameras[torch.tensor(list(views.indices))]
    return {
        "compared_with": REFERENCE_RENDERS,
        "capture": None,
        "views": len(views.indices),
        "width": cameras.width,
        "height": cameras.height,
        "cameras_sha256": cameras.sha256,
    }
