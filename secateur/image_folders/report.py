"""The page of folders of images: the worst pairs with their errors, samples, distances, and what was not measured."""

from __future__ import annotations

import math

from secateur.evaluation.pages import overview_table, pairs_table
from secateur.evaluation.record import EvaluationRecord, Measurement, Subject
from secateur.evaluation.wording import say, say_noise, say_value
from secateur.image_folders.pictures import fitted, read_picture, sample_sheet
from secateur.image_folders.record import PAIRS
from secateur.image_folders.results import Comparison, FolderResult
from secateur.quantities import format_decibels
from secateur.report.page import Drawing, Errors, Figure, Image, Page, Result, Table, View, errors_between

SHOWN = 6
"""Pairs that the page shows: the worst."""

_LISTED = 20
"""Pairs that its table lists."""


def page_of(found: Comparison, record: EvaluationRecord) -> Page:
    """What people see of a comparison of folders."""
    shown = worst_pairs(found)
    views, drawn = _views(found, shown)
    results = tuple(
        _result(result, subject, record, found, shown, drawn[index])
        for index, (result, subject) in enumerate(zip(found.candidates, record.candidates, strict=True))
    )
    names = ", ".join(subject.name for subject in record.candidates)
    sets = f"{len(found.reference)} images against " + ", ".join(str(len(one.folder)) for one in found.candidates)
    worst = f" Of the images of one name, the {len(views)} worst are shown." if len(views) > 1 else ""
    subtitle = f"{names} compared with {record.reference.name}: {sets}.{worst}"
    pairs = pairs_table(record)
    several = len(record.candidates) > 1
    return Page(
        record.reference.name,
        subtitle,
        record.reference.name,
        views,
        results,
        details=_details(record),
        summary=overview_table(record) if several else None,
        tables=() if pairs is None else (pairs,),
        command=record.runs[0].command,
    )


def worst_pairs(found: Comparison) -> list[str]:
    """Names in the reference of the pairs to show: those of the lowest PSNR in any candidate, of all that have them."""
    held = [
        dict(zip(one.pairs.names, one.pairs.psnr, strict=True)) if one.pairs is not None else {}
        for one in found.candidates
    ]
    shared = [name for name in held[0] if all(name in one for one in held)]
    return sorted(shared, key=lambda name: (min(one[name] for one in held), name))[:SHOWN]


def _views(
    found: Comparison, shown: list[str]
) -> tuple[tuple[View, ...], list[tuple[tuple[Image, ...], tuple[Errors, ...]]]]:
    """The reference's pictures, and each candidate's with their errors, all as large as the largest."""
    originals = [read_picture(found.reference.path / name) for name in shown]
    box = (max((one.shape[0] for one in originals), default=1), max((one.shape[1] for one in originals), default=1))
    before = [fitted(one, box) for one in originals]
    drawn = []
    for result in found.candidates:
        assert result.pairs is not None or not shown
        names = dict(zip(result.pairs.names, result.pairs.candidates, strict=True)) if result.pairs else {}
        after = tuple(fitted(read_picture(result.folder.path / names[name]), box) for name in shown)
        drawn.append((after, tuple(errors_between(*pair) for pair in zip(after, before, strict=True))))
    return tuple(View(name, image) for name, image in zip(shown, before, strict=True)), drawn


def _result(
    result: FolderResult,
    subject: Subject,
    record: EvaluationRecord,
    found: Comparison,
    shown: list[str],
    drawn: tuple[tuple[Image, ...], tuple[Errors, ...]],
) -> Result:
    decibels = {} if result.pairs is None else dict(zip(result.pairs.names, result.pairs.psnr, strict=True))
    sheet = sample_sheet(found.reference, result)
    note = f"{record.reference.name} in the upper rows, {subject.name} in the lower ones."
    return Result(
        subject.name,
        _figures(subject),
        drawn[0],
        drawn[1],
        tuple(format_decibels(decibels[name]) for name in shown),
        tuple(_tables(result, subject, found)),
        (Drawing("Samples", sheet, note),),
    )


def _figures(subject: Subject) -> tuple[Figure, ...]:
    """The distances first, then what is known of pairs, then sizes."""
    order = sorted(subject.measurements.items(), key=lambda item: item[1].better == "neither")
    return tuple(Figure(one.label, say(one), None, _note(one)) for _, one in order)


def _note(one: Measurement) -> str | None:
    if one.interval is not None:
        low, high = (say_value(end, one.unit) for end in (one.interval.low, one.interval.high))
        return f"{one.interval.confidence:.0%} interval {low} to {high}, {one.samples} images"
    if one.samples is None:
        return None
    return ", ".join(part for part in (say_noise(one), f"{one.samples} images") if part)


def _tables(result: FolderResult, subject: Subject, found: Comparison) -> list[Table]:
    tables = []
    if result.distances or result.cmmd is not None:
        tables.append(_distances(result, found))
    if PAIRS in subject.parts:
        tables.append(_worst(subject))
    if result.pairs is not None and result.pairs.other_size:
        names = result.pairs.other_size
        rows = tuple((name,) for name in names[:_LISTED])
        note = f"{len(names)} pairs of one name and two sizes; they have no PSNR or SSIM."
        tables.append(Table("Left out", ("Image",), rows, note))
    if found.missing:
        tables.append(Table("Not measured", ("Metric", "Why, and how to get it"), tuple(found.missing.items())))
    return tables


def _distances(result: FolderResult, found: Comparison) -> Table:
    rows = []
    for one in result.distances:
        said, floor = one.distances, found.floors.get(one.features)
        error = "" if one.error is None else f" ± {one.error:.2g}"
        real = ("", "") if floor is None else (f"{floor.frechet:.4g}", f"{floor.kid:.4g}")
        images, dimensions = str(said.samples), str(said.dimensions)
        rows.append((said.name, f"{said.frechet:.4g}{error}", real[0], images, dimensions))
        rows.append((f"KID-{one.features}", f"{said.kid.mean:.4g}", real[1], images, dimensions))
    clip = found.networks.clip
    if result.cmmd is not None and clip is not None:
        real_cmmd = "" if found.cmmd_floor is None else f"{found.cmmd_floor:.4g}"
        rows.append(
            (f"CMMD-{clip.name}", f"{result.cmmd:.4g}", real_cmmd, str(len(result.folder)), str(clip.dimensions))
        )
    columns = ("Distance", "Value", "Real against real", "Images", "Dimensions")
    return Table("Distances", columns, tuple(rows), _on_distances(result, found))


def _on_distances(result: FolderResult, found: Comparison) -> str:
    said = ["Frechet distances at other numbers of images cannot be compared; ± is the standard error."]
    halves = {floor.images for floor in found.floors.values()}
    if halves:
        said.append(
            f"Real against real: two random halves of the reference, {halves.pop()} images each, which a Frechet "
            "distance puts about twice as far apart as two whole sets of real images."
        )
    if any(one.distances.singular for one in result.distances):
        said.append("No more images than dimensions: the Frechet distance rests on a singular covariance.")
    return " ".join(said)


def _worst(subject: Subject) -> Table:
    part = subject.parts[PAIRS]
    decibels = part.columns["psnr"].values
    order = sorted(range(len(part.rows)), key=lambda row: (math.inf if decibels[row] is None else decibels[row], row))
    columns = [(name, column) for name, column in part.columns.items()]
    rows = tuple(
        (part.rows[row], *(_cell(name, column.values[row]) for name, column in columns)) for row in order[:_LISTED]
    )
    return Table("Worst pairs", ("Image", *(column.label for _, column in columns)), rows)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "identical" if name == "psnr" else ""
    return format_decibels(value) if name == "psnr" else f"{value:.4f}"


def _details(record: EvaluationRecord) -> dict[str, str]:
    run = record.runs[0]
    memory = "" if run.machine.memory_bytes is None else f", {run.machine.memory_bytes / 1e9:.0f} GB of memory"
    networks = ", ".join(f"{name} ({sha[:8]})" for name, sha in record.protocol["networks"].items())
    return {
        "Machine": f"{run.machine.processor}, {run.machine.cores} cores{memory}",
        "System": run.machine.system,
        "Networks": networks or "none",
        "Seconds": ", ".join(f"{step} {seconds:.1f}" for step, seconds in run.seconds.items()),
        "Versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
