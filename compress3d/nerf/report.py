"""Pages of neural fields: what compressing one did, what a candidate looks like beside a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.compress import CompressRecord
from compress3d.nerf.evaluate import FieldEvaluation
from compress3d.nerf.field import Field
from compress3d.nerf.render import render
from compress3d.nerf.teacher import OWN_RENDERS, views_around
from compress3d.nerf.units import rows_by_level
from compress3d.splats.evaluate import Quality
from secateur.evaluation.record import EvaluationRecord
from secateur.quantities import format_bytes, format_decibels
from secateur.report.page import (
    Cell,
    Errors,
    Figure,
    Image,
    Meter,
    Page,
    Plot,
    Point,
    Result,
    Table,
    View,
    as_pictures,
    errors_between,
    write_report,
)
from secateur.report.record import Machine

PICTURES = 6
"""Views that a page shows, of those that a field is judged by."""

_OWN_SIZE = 400


def shown_views(indices: Sequence[int]) -> list[int]:
    """Which of the views a page shows: a few, evenly."""
    places = torch.linspace(0, len(indices) - 1, min(PICTURES, len(indices))).round().long()
    return [indices[place] for place in places.tolist()]


def evaluation_page(
    record: EvaluationRecord,
    original: str,
    names: Sequence[str],
    originals: Sequence[Float[Tensor, "H W 3"]],
    pictures: Sequence[Sequence[Float[Tensor, "H W 3"]]],
    shown: Sequence[int],
) -> Page:
    """The pictures of an evaluation; its numbers come from the record.

    Args:
        record: of the evaluation.
        original: what the pictures on the left are.
        names: of the views that are shown.
        originals: their pictures.
        pictures: those of each candidate.
        shown: indices of these views among the cameras.
    """
    before = _pictures(originals)
    results = []
    for one, images in zip(record.candidates, map(_pictures, pictures), strict=True):
        decibels = dict(zip(one.parts["views"].rows, one.parts["views"].columns["psnr"].values, strict=True))
        captions = tuple(format_decibels(_infinite(decibels[name])) for name in names)
        results.append(Result(one.name, (), images, _errors(images, before), captions))
    views = tuple(View(name, image) for name, image in zip(names, before, strict=True))
    compared = ", ".join(one.name for one in record.candidates)
    subtitle = (
        f"{compared} compared with {record.reference.name} on {record.protocol['views']} views, against "
        f"{record.protocol['compared_with']}."
    )
    return Page(record.reference.name, subtitle, original, views, tuple(results))


def write_compression_report(
    record: CompressRecord, name: str, sizes: dict[str, int], field: Field, small: Field, capture: Capture | None,
    directory: Path,
) -> Path:  # fmt: skip
    """Write `results.json` and `index.html` of a compression; returns the page's path.

    Args:
        record: of the compression.
        name: of the field.
        sizes: bytes by part of the new file.
        field: as it was.
        small: as its file holds it.
        capture: photographs that judged; None: the field's own renders did.
        directory: made when it is not there.
    """
    if capture is None or not len(capture.test):
        cameras, indices = views_around(field.box, PICTURES, _OWN_SIZE), list(range(PICTURES))
        names = [f"View {index + 1}" for index in indices]
    else:
        cameras, indices = capture.cameras, shown_views(capture.test.tolist())
        names = [capture.names[index] for index in indices]
    background = (1.0, 1.0, 1.0) if capture is None else capture.background
    before, after = (
        _pictures([render(one, cameras, index, background).image for index in indices]) for one in (field, small)
    )
    captions = _captions(record, capture, indices)
    result = Result(
        "compressed", _figures(record), after, _errors(after, before), captions, _tables(record, sizes, small)
    )
    judged = (
        "" if record.after is None else f" Judged on {len(record.after.psnr)} views, against {record.after.reference}."
    )
    by = "its own renders" if record.capture == OWN_RENDERS else f"the photographs of {record.capture}"
    page = Page(
        name,
        f"{name}, compressed and recovered by {by}.{judged} Pictures on the left are of the field as it was.",
        "Before",
        tuple(View(one, image) for one, image in zip(names, before, strict=True)),
        (result,),
        _plots(record),
        _details(record.machine, record.versions, record.options),
    )
    return write_report(page, record, directory)


def write_photograph_report(
    record: FieldEvaluation, sizes: dict[str, int], field: Field, capture: Capture, views: Sequence[int],
    directory: Path,
) -> Path:  # fmt: skip
    """Write `results.json` and `index.html` of a field beside photographs; returns the page's path.

    Args:
        record: of the evaluation.
        sizes: bytes by part of the field's file.
        field: the field.
        capture: the photographs.
        views: indices of those that judge.
        directory: made when it is not there.
    """
    name, quality = record.name, record.quality
    shown = shown_views(views)
    photographs = _pictures([capture.image(index) for index in shown])
    images = _pictures([render(field, capture.cameras, index, capture.background).image for index in shown])
    decibels = dict(zip(views, quality.psnr, strict=True))
    figures = (
        Figure("File size", format_bytes(sum(sizes.values()))),
        Figure("PSNR", format_decibels(quality.mean_psnr), None, f"mean of {len(quality.psnr)} photographs"),
        Figure("SSIM", f"{quality.mean_ssim:.4f}"),
        Figure("Seconds a view", f"{record.speed.median_ms / 1000:.2f}", None, f"{quality.width}x{quality.height}"),
    )
    result = Result(
        name,
        figures,
        images,
        _errors(images, photographs),
        tuple(format_decibels(decibels[index]) for index in shown),
        (_by_part(sizes), _by_level(field), _by_view([capture.names[index] for index in views], quality)),
    )
    page = Page(
        name,
        f"{name} beside {len(views)} photographs of {capture.name}.",
        "Photograph",
        tuple(View(capture.names[index], image) for index, image in zip(shown, photographs, strict=True)),
        (result,),
        details=_details(record.machine, {}, {}),
    )
    return write_report(page, record, directory)


def _infinite(value: float | None) -> float:
    """A PSNR as a record has it: nothing stands for that of equal pictures."""
    return math.inf if value is None else value


def _captions(record: CompressRecord, capture: Capture | None, indices: Sequence[int]) -> tuple[str, ...]:
    """PSNR of each shown view, where it was judged."""
    if record.after is None or capture is None or record.after.reference == OWN_RENDERS or not len(capture.test):
        return ("",) * len(indices)
    decibels = dict(zip(capture.test.tolist(), record.after.psnr, strict=True))
    return tuple(format_decibels(decibels[index]) for index in indices)


def _figures(record: CompressRecord) -> tuple[Figure, ...]:
    smaller = f"{record.bytes_before / record.bytes:.1f} times smaller"
    share = f"{record.rows[1] / max(record.rows[0], 1):.3g} of them"
    figures = [
        Figure("File size", format_bytes(record.bytes), format_bytes(record.bytes_before), smaller),
        Figure("Rows of the tables", f"{record.rows[1]:,}", f"{record.rows[0]:,}", share),
        Figure("Levels", str(record.levels[1]), str(record.levels[0])),
    ]
    if record.before is not None and record.cut is not None and record.after is not None:
        cut = f"{format_decibels(record.cut.mean_psnr)} before recovery"
        before, after = (format_decibels(one.mean_psnr) for one in (record.before, record.after))
        figures.append(Figure("PSNR", after, before, cut))
        figures.append(Figure("SSIM", f"{record.after.mean_ssim:.4f}", f"{record.before.mean_ssim:.4f}"))
    return tuple(figures)


def _tables(record: CompressRecord, sizes: dict[str, int], small: Field) -> tuple[Table, ...]:
    tables = [_by_part(sizes), _by_level(small)]
    three = (record.before, record.cut, record.after)
    if all(three):
        rows = [
            (step, format_decibels(one.mean_psnr), f"{one.mean_ssim:.4f}")
            for step, one in zip(("as it was", "cut and rounded", "recovered"), three, strict=True)
            if one is not None
        ]
        tables.append(Table("Quality by step", ("", "PSNR", "SSIM"), tuple(rows), sortable=False))
    longest = max(record.seconds.values(), default=0.0) or 1.0
    times = tuple((step, Meter(f"{time:.1f} s", time / longest)) for step, time in record.seconds.items())
    total = ("Total", f"{sum(record.seconds.values()):.1f} s")
    tables.append(Table("Time", ("Step", "Seconds"), times, total=total))
    return tuple(tables)


def _by_part(sizes: dict[str, int]) -> Table:
    most = max(sizes.values(), default=0) or 1
    rows = tuple((part, Meter(f"{size:,}", size / most)) for part, size in sizes.items())
    return Table("Bytes by part of the file", ("Part", "Bytes"), rows, total=("Total", f"{sum(sizes.values()):,}"))


def _by_level(field: Field) -> Table:
    stored = rows_by_level(field).tolist()
    most = max(stored, default=0) or 1
    rows: list[tuple[Cell, ...]] = [
        (f"{index + 1}", str(level.resolution), f"{level.rows:,}", Meter(f"{kept:,}", kept / most))
        for index, (level, kept) in enumerate(zip(field.levels, stored, strict=True))
    ]
    return Table("Rows by level", ("Level", "Cells a side", "Rows of the grid", "Rows stored"), tuple(rows))


def _by_view(names: Sequence[str], quality: Quality) -> Table:
    rows = tuple(
        (name, format_decibels(decibels), f"{similarity:.4f}")
        for name, decibels, similarity in zip(names, quality.psnr, quality.ssim, strict=True)
    )
    return Table("By view", ("View", "PSNR", "SSIM"), rows)


def _plots(record: CompressRecord) -> tuple[Plot, ...]:
    points = tuple(Point(step, loss, "") for step, loss in record.fit.losses)
    return (Plot("Recovery", "step", "loss", points, "neither", "neither"),) if len(points) > 1 else ()


def _details(machine: Machine, versions: dict[str, str], options: dict[str, object]) -> dict[str, str]:
    said = {"Machine": f"{machine.processor}, {machine.cores} cores"} | {
        name: str(value) for name, value in versions.items()
    }
    return said | {name.replace("_", " ").capitalize(): str(one) for name, one in options.items() if one is not None}


def _pictures(images: Sequence[Float[Tensor, "H W 3"]]) -> tuple[Image, ...]:
    return as_pictures([image.clamp(0, 1).numpy() for image in images])


def _errors(images: Sequence[Image], originals: Sequence[Image]) -> tuple[Errors, ...]:
    return tuple(errors_between(*pair) for pair in zip(images, originals, strict=True))
