"""Evaluations and compressions of neural fields as the record that all runs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compress3d.captures import Capture
from compress3d.nerf.compress import CompressRecord
from compress3d.nerf.evaluate import FieldEvaluation
from compress3d.nerf.field import Field
from compress3d.nerf.sizes import bytes_by_part
from compress3d.nerf.train import PACKAGES
from compress3d.nerf.units import rows_by_level
from compress3d.photographs import photographs_protocol, photographs_subject
from compress3d.splats.evaluate import Quality
from secateur.evaluation.measurements import averaged, counted, rate, timed, timing_details
from secateur.evaluation.naming import distinct_names
from secateur.evaluation.record import Column, EvaluationRecord, Measurement, Part, Subject
from secateur.evaluation.run import Start, hash_path
from secateur.metrics.speed import Speed
from secateur.report.record import to_json

KIND = "field"


def compression_record(
    compression: CompressRecord,
    fields: tuple[Field, Field],
    paths: tuple[Path, Path],
    capture: Capture | None,
    start: Start,
) -> EvaluationRecord:
    """The shared record of a compression.

    Args:
        compression: what was done.
        fields: as it was, and as its file holds it.
        paths: of their files.
        capture: photographs that judged; None: the field's own renders did.
        start: when it began.
    """
    before, after = compression.before, compression.after
    views = [] if after is None else _names(after, capture)
    (name,) = distinct_names([paths[1].name], [paths[1]], {paths[0].name})
    reference = subject_of(paths[0].name, paths[0], fields[0], views, before)
    small = subject_of(name, paths[1], fields[1], views, after, before)
    options = {key: value for key, value in compression.options.items() if key != "seed"}
    details = {"options": to_json(options), "recovery": to_json(compression.fit)}
    if compression.cut is not None:
        details["before_recovery"] = {"psnr": to_json(compression.cut.psnr), "ssim": to_json(compression.cut.ssim)}
    if capture is not None:
        protocol = photographs_protocol(capture, capture.test.tolist())
    else:
        size = {} if after is None else {"width": after.width, "height": after.height}
        protocol = {"compared_with": compression.capture, "views": len(views), **size}
    return EvaluationRecord(
        kind=KIND,
        runs=(start.run(compression.seconds, PACKAGES, {"compression": int(str(compression.options["seed"]))}),),
        protocol=protocol,
        reference=reference,
        candidates=(replace(small, details={**small.details, **details}),),
    )


def photographs_record(
    found: FieldEvaluation, field: Field, paths: tuple[Path, Path], capture: Capture, views: Sequence[int], start: Start
) -> EvaluationRecord:
    """The shared record of a field beside photographs.

    Args:
        found: what was measured.
        field: the field.
        paths: of the photographs, then of the field.
        capture: the photographs.
        views: indices of those that judge.
        start: when it began.
    """
    names = [capture.names[index] for index in views]
    subject = subject_of(found.name, paths[1], field, names, found.quality)
    subject = replace(subject, measurements={**subject.measurements, **timings(found.speed)})
    return EvaluationRecord(
        kind=KIND,
        runs=(start.run(found.seconds, PACKAGES, {}, found.speed.threads),),
        protocol=photographs_protocol(capture, views),
        reference=photographs_subject(capture, views, paths[0]),
        candidates=(replace(subject, details={"speed": timing_details(found.speed)}),),
    )


def subject_of(
    name: str, path: Path, field: Field, views: Sequence[str], quality: Quality | None, before: Quality | None = None
) -> Subject:
    """What was measured of a field, but for times and memory.

    Args:
        name: what it is called.
        path: of its file.
        field: what the file holds.
        views: names of those that the quality is of.
        quality: None where that was not measured.
        before: of the reference on the same views, where it was measured.
    """
    measurements: dict[str, Measurement] = {}
    parts: dict[str, Part] = {}
    if quality is not None:
        decibels, similarity = (None, None) if before is None else (before.psnr, before.ssim)
        measurements["psnr"] = averaged(quality.psnr, "dB", "PSNR", "higher", reference=decibels)
        measurements["ssim"] = averaged(quality.ssim, "", "SSIM", "higher", reference=similarity)
        columns = {
            "psnr": Column(tuple(quality.psnr), "dB", "higher", "PSNR"),
            "ssim": Column(tuple(quality.ssim), "", "higher", "SSIM"),
        }
        parts["views"] = Part("view", tuple(views), columns)
    measurements["size"] = counted(path.stat().st_size, "bytes", "file size")
    measurements["rows"] = counted(len(field.table), "", "rows of the tables")
    measurements["levels"] = counted(len(field.levels), "", "levels")
    measurements["weights_memory"] = counted(field.bytes, "bytes", "memory of the field")
    sizes = bytes_by_part(path)
    column = Column(tuple(float(size) for size in sizes.values()), "bytes", "lower", "bytes")
    parts["file"] = Part("part of the file", tuple(sizes), {"part_bytes": column})
    parts["levels"] = _levels(field)
    return Subject(name, str(path), hash_path(path), 0, measurements, parts)


def timings(speed: Speed) -> dict[str, Measurement]:
    """The rate and the time of frames."""
    return {"frames_per_second": rate(speed.times_ms, "frames/s"), "frame": timed(speed, "time of a frame")}


def _levels(field: Field) -> Part:
    """Rows of each level of the grid, which its resolution names: numbers of levels change when some go."""
    sides = [str(level.resolution) for level in field.levels]
    numbered = [f"{side} (level {index + 1})" for index, side in enumerate(sides)]
    stored = tuple(map(float, rows_by_level(field).tolist()))
    columns = {"stored_rows": Column(stored, "", "neither", "rows stored")}
    return Part("cells a side", tuple(distinct_names(sides, numbered, ())), columns)


def _names(quality: Quality, capture: Capture | None) -> list[str]:
    if capture is None:
        return [f"View {index + 1}" for index in range(len(quality.psnr))]
    return [capture.names[index] for index in capture.test.tolist()]
