"""Pages of neural fields: what compressing one did, what a candidate looks like beside a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.compress import CompressRecord
from compress3d.nerf.field import Field
from compress3d.nerf.render import render
from compress3d.nerf.teacher import OWN_RENDERS, views_around
from secateur.evaluation.record import EvaluationRecord, Subject
from secateur.quantities import format_decibels
from secateur.report.evaluation import option_details
from secateur.report.page import (
    Errors,
    Image,
    Page,
    Plot,
    Point,
    Result,
    Table,
    View,
    as_pictures,
    errors_between,
)

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
        results.append(Result(one.name, (), images, _errors(images, before), _decibels(one, names)))
    views = tuple(View(name, image) for name, image in zip(names, before, strict=True))
    compared = ", ".join(one.name for one in record.candidates)
    subtitle = (
        f"{compared} compared with {record.reference.name} on {record.protocol['views']} views, against "
        f"{record.protocol['compared_with']}."
    )
    return Page(record.reference.name, subtitle, original, views, tuple(results))


def compression_page(
    record: EvaluationRecord, compression: CompressRecord, fields: tuple[Field, Field], capture: Capture | None
) -> Page:
    """The pictures of a compression, and how it went; its numbers come from the record.

    Args:
        record: as `compression_record` makes it.
        compression: what was done.
        fields: as it was, and as its file holds it.
        capture: photographs that judged; None: the field's own renders did.
    """
    if capture is None or not len(capture.test):
        cameras, indices = views_around(fields[0].box, PICTURES, _OWN_SIZE), list(range(PICTURES))
        names = [f"View {index + 1}" for index in indices]
    else:
        cameras, indices = capture.cameras, shown_views(capture.test.tolist())
        names = [capture.names[index] for index in indices]
    background = (1.0, 1.0, 1.0) if capture is None else capture.background
    before, after = (_pictures([render(one, cameras, index, background).image for index in indices]) for one in fields)
    captions = _captions(compression, capture, indices)
    (small,) = record.candidates
    result = Result(small.name, images=after, errors=_errors(after, before), captions=captions)
    found = compression.after
    judged = "" if found is None else f" Judged on {len(found.psnr)} views, against {found.reference}."
    by = "its own renders" if compression.capture == OWN_RENDERS else f"the photographs of {compression.capture}"
    name = record.reference.name
    return Page(
        name,
        f"{name}, compressed and recovered by {by}.{judged} Pictures on the left are of the field as it was.",
        "Before",
        tuple(View(one, image) for one, image in zip(names, before, strict=True)),
        (result,),
        _plots(compression),
        option_details(small.details["options"]),
        tables=_by_step(compression),
    )


def photographs_page(record: EvaluationRecord, field: Field, capture: Capture, views: Sequence[int]) -> Page:
    """The pictures of a field beside photographs; its numbers come from the record.

    Args:
        record: as `photographs_record` makes it.
        field: the field.
        capture: the photographs.
        views: indices of those that judge.
    """
    (subject,) = record.candidates
    shown = shown_views(views)
    photographs = _pictures([capture.image(index) for index in shown])
    images = _pictures([render(field, capture.cameras, index, capture.background).image for index in shown])
    names = [capture.names[index] for index in shown]
    result = Result(
        subject.name, images=images, errors=_errors(images, photographs), captions=_decibels(subject, names)
    )
    return Page(
        subject.name,
        f"{subject.name} beside {len(views)} photographs of {capture.name}.",
        "Photograph",
        tuple(View(name, image) for name, image in zip(names, photographs, strict=True)),
        (result,),
    )


def _decibels(one: Subject, names: Sequence[str]) -> tuple[str, ...]:
    """PSNR of the views of these names."""
    part = one.parts["views"]
    found = dict(zip(part.rows, part.columns["psnr"].values, strict=True))
    return tuple(format_decibels(_infinite(found[name])) for name in names)


def _infinite(value: float | None) -> float:
    """A PSNR as a record has it: nothing stands for that of equal pictures."""
    return math.inf if value is None else value


def _captions(record: CompressRecord, capture: Capture | None, indices: Sequence[int]) -> tuple[str, ...]:
    """PSNR of each shown view, where it was judged."""
    if record.after is None or capture is None or record.after.reference == OWN_RENDERS or not len(capture.test):
        return ("",) * len(indices)
    decibels = dict(zip(capture.test.tolist(), record.after.psnr, strict=True))
    return tuple(format_decibels(decibels[index]) for index in indices)


def _by_step(record: CompressRecord) -> tuple[Table, ...]:
    """What cutting and rounding cost, and what was won back; nothing without views to judge by."""
    steps = {"as it was": record.before, "cut and rounded": record.cut, "recovered": record.after}
    rows = tuple(
        (step, format_decibels(one.mean_psnr), f"{one.mean_ssim:.4f}") for step, one in steps.items() if one is not None
    )
    return (Table("Quality by step", ("", "PSNR", "SSIM"), rows, sortable=False),) if rows else ()


def _plots(record: CompressRecord) -> tuple[Plot, ...]:
    points = tuple(Point(step, loss, "") for step, loss in record.fit.losses)
    return (Plot("Recovery", "step", "loss", points, "neither", "neither"),) if len(points) > 1 else ()


def _pictures(images: Sequence[Float[Tensor, "H W 3"]]) -> tuple[Image, ...]:
    return as_pictures([image.clamp(0, 1).cpu().numpy() for image in images])


def _errors(images: Sequence[Image], originals: Sequence[Image]) -> tuple[Errors, ...]:
    return tuple(errors_between(*pair) for pair in zip(images, originals, strict=True))
