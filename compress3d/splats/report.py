"""The pages that show what compressing a scene did: its pictures beside the original's, and what the record says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from compress3d.cameras import Cameras
from compress3d.splats.compress import Compression
from compress3d.splats.evaluate import Evaluation, Quality
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from secateur.evaluation.record import EvaluationRecord
from secateur.quantities import format_decibels
from secateur.report.evaluation import option_details
from secateur.report.page import Errors, Image, Number, Page, Result, Table, View, as_pictures, errors_between

if TYPE_CHECKING:
    from secateur.training import FitRecord

PICTURES = 6
"""Views that the page shows, of those that the scene is judged by."""

_LONGER_SIDE = 800


def compressions_page(
    record: EvaluationRecord,
    compressions: Sequence[Compression],
    scenes: Sequence[SplatScene],
    original: SplatScene,
    cameras: Cameras,
    links: Mapping[str, str],
) -> Page:
    """The pictures of compressions of one scene, and how they were recovered.

    Args:
        record: of the compressions, as `compressions_record` makes it.
        compressions: in the order of its candidates.
        scenes: what each of them made, as its file holds it.
        original: the scene before.
        cameras: the held-out views that the record speaks of.
        links: to other pages, as `Page.links`.
    """
    names = [candidate.name for candidate in record.candidates]
    qualities = [one.quality for one in compressions]
    views, results = _compared(names, qualities, _draw(original, scenes, cameras))
    results = tuple(
        replace(result, tables=_recovery(one.recovery)) for result, one in zip(results, compressions, strict=True)
    )
    return Page(
        record.reference.name,
        f"{record.reference.name} compressed: {', '.join(names)}. Judged on {len(cameras)} held-out views that the "
        f"compression never looked through, against {qualities[0].reference}.",
        "Original",
        views,
        results,
        details=option_details(record.details["options"]),
        links=links,
    )


def evaluation_page(record: Evaluation, scenes: Sequence[SplatScene], original: SplatScene, cameras: Cameras) -> Page:
    """The pictures of an evaluation.

    Args:
        record: what was measured.
        scenes: the candidates, as their files hold them.
        original: what they stand for.
        cameras: the views that the record speaks of.
    """
    names = [candidate.file.name for candidate in record.candidates]
    qualities = [candidate.quality for candidate in record.candidates]
    return Page(
        record.reference.name,
        f"{', '.join(names)} compared with {record.reference.name} on {len(cameras)} views, against "
        f"{qualities[0].reference}.",
        "Original",
        *_compared(names, qualities, _draw(original, scenes, cameras)),
    )


class _Drawings(NamedTuple):
    """Pictures of some of the views: their indices, the original's; and for each scene its own and their errors."""

    views: list[int]
    before: tuple[Image, ...]
    after: list[tuple[Image, ...]]
    errors: list[tuple[Errors, ...]]


def _draw(original: SplatScene, scenes: Sequence[SplatScene], cameras: Cameras) -> _Drawings:
    views = torch.linspace(0, len(cameras) - 1, min(PICTURES, len(cameras))).round().long()
    shown = cameras[views]
    factor = _LONGER_SIDE / max(shown.width, shown.height)
    shown = shown.resized(round(shown.width * factor), round(shown.height * factor))
    before = as_pictures(list(render(original, shown).cpu().numpy()))
    after = [as_pictures(list(render(scene, shown).cpu().numpy())) for scene in scenes]
    errors = [tuple(errors_between(*pair) for pair in zip(images, before, strict=True)) for images in after]
    return _Drawings(views.tolist(), before, after, errors)


def _compared(
    names: Sequence[str], qualities: Sequence[Quality], drawings: _Drawings
) -> tuple[tuple[View, ...], tuple[Result, ...]]:
    """The original's pictures, and each scene's with its errors and PSNR."""
    views = tuple(View(f"View {view + 1}", image) for view, image in zip(drawings.views, drawings.before, strict=True))
    results = tuple(
        Result(
            name,
            images=drawings.after[index],
            errors=drawings.errors[index],
            captions=tuple(format_decibels(quality.psnr[view]) for view in drawings.views),
        )
        for index, (name, quality) in enumerate(zip(names, qualities, strict=True))
    )
    return views, results


def _recovery(fits: Sequence[FitRecord]) -> tuple[Table, ...]:
    """PSNR on the validation views as the recovery went; its last fit is through the rounding of the file's format."""
    rows, before = [], 0
    for number, fit in enumerate(fits):
        title = "through the file's rounding" if number else "recovery"
        rows += [
            (title, Number(str(before + step), before + step), Number(format_decibels(score), score))
            for step, score in fit.validations
        ]
        before += fit.steps
    note = "The weights that are kept are those that score best; these views are neither learnt from nor judged by."
    return (Table("Recovery", ("Fit", "Step", "PSNR"), tuple(rows), note),) if rows else ()
