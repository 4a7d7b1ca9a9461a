"""The page of folders of images: the worst pairs with their errors, samples, distances, and what was not measured."""

from __future__ import annotations

from secateur.evaluation.record import EvaluationRecord, Subject
from secateur.image_folders.pictures import fitted, read_picture, sample_sheet
from secateur.image_folders.results import Comparison, FolderResult
from secateur.quantities import format_decibels
from secateur.report.page import Drawing, Errors, Image, Page, Result, Table, View, errors_between

SHOWN = 6
"""Pairs that the page shows: the worst."""

_LISTED = 12
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
    return Page(
        record.reference.name,
        subtitle,
        record.reference.name,
        views,
        results,
        details={f"{metric}: not measured": how for metric, how in found.missing.items()},
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
        (),
        drawn[0],
        drawn[1],
        tuple(format_decibels(decibels[name]) for name in shown),
        tuple(_tables(result, found)),
        (Drawing("Samples", sheet, note),),
    )


def _tables(result: FolderResult, found: Comparison) -> list[Table]:
    tables = []
    if result.distances or result.cmmd is not None:
        tables.append(_distances(result, found))
    if result.pairs is not None and result.pairs.other_size:
        names = result.pairs.other_size
        rows = tuple((name,) for name in names[:_LISTED])
        note = f"{len(names)} pairs of one name and two sizes; they have no PSNR or SSIM."
        tables.append(Table("Left out", ("Image",), rows, note))
    return tables


def _distances(result: FolderResult, found: Comparison) -> Table:
    rows = []
    for one in result.distances:
        said, floor = one.distances, found.floors.get(one.features)
        error = "" if one.error is None else f" ± {one.error:.2g}"
        real = ("", "") if floor is None else (f"{floor.frechet:.4g}", f"{floor.kid:.4g}")
        rows.append((said.name, f"{said.frechet:.4g}{error}", real[0], str(said.samples)))
        rows.append((f"KID-{one.features}", f"{said.kid.mean:.4g}", real[1], str(said.samples)))
    clip = found.networks.clip
    if result.cmmd is not None and clip is not None:
        real_cmmd = "" if found.cmmd_floor is None else f"{found.cmmd_floor:.4g}"
        rows.append((f"CMMD-{clip.name}", f"{result.cmmd:.4g}", real_cmmd, str(len(result.folder))))
    columns = ("Distance", "Value", "Real against real", "Images")
    return Table("Distances", columns, tuple(rows), _on_distances(result, found))


def _on_distances(result: FolderResult, found: Comparison) -> str:
    said = [f"{one.features} has {one.distances.dimensions} dimensions." for one in result.distances]
    said.append("Frechet distances at other numbers of images cannot be compared; ± is the standard error.")
    halves = {floor.images for floor in found.floors.values()}
    if halves:
        said.append(
            f"Real against real: two random halves of the reference, {halves.pop()} images each, which a Frechet "
            "distance puts about twice as far apart as two whole sets of real images."
        )
    if any(one.distances.singular for one in result.distances):
        said.append("No more images than dimensions: the Frechet distance rests on a singular covariance.")
    return " ".join(said)
