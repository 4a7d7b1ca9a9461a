"""Evaluations and compressions of splat scenes as the record that all runs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress3d.cameras import Cameras
from compress3d.splats.compress import Compression
from compress3d.splats.evaluate import PACKAGES, Evaluation, Quality, SceneFile
from secateur.evaluation.measurements import averaged, counted, rate, timed, timing_details
from secateur.evaluation.merge import candidate_pairs
from secateur.evaluation.naming import distinct_names
from secateur.evaluation.record import Column, EvaluationRecord, Measurement, Part, Subject
from secateur.evaluation.run import Start, hash_path
from secateur.report.record import to_json

KIND = "splat"


def record_of(
    evaluation: Evaluation, paths: Sequence[Path], cameras: Cameras, start: Start, *, seed: int = 0
) -> EvaluationRecord:
    """The shared record of an evaluation.

    Args:
        evaluation: what was measured.
        paths: of the reference, then the candidates.
        cameras: that it was measured through.
        start: when it began.
        seed: of the sampled views.
    """
    files = (evaluation.reference, *(one.file for one in evaluation.candidates))
    qualities = (None, *(one.quality for one in evaluation.candidates))
    reference, *candidates = map(subject_of, files, qualities, paths)
    speed = evaluation.reference.speed
    return EvaluationRecord(
        kind=KIND,
        runs=(start.run(evaluation.seconds, PACKAGES, {"views": seed}, speed.threads if speed else None),),
        protocol=_protocol(evaluation, cameras),
        reference=reference,
        candidates=tuple(candidates),
        pairs=candidate_pairs(candidates),
    )


def _protocol(evaluation: Evaluation, cameras: Cameras) -> dict[str, Any]:
    options, quality = evaluation.options, evaluation.candidates[0].quality
    protocol = _views_protocol(quality, cameras)
    if options["views_given"]:
        return protocol | {"cameras_sha256": cameras.sha256}
    return protocol | {"views_seed": options["seed"], "views_up": list(options["up"])}  # type: ignore[call-overload]


def compressions_record(
    compressions: Sequence[Compression], paths: Sequence[Path], cameras: Cameras, start: Start
) -> EvaluationRecord:
    """The shared record of compressions of one scene, which are called as their budgets.

    Args:
        compressions: one for each budget.
        paths: of the original, then what was written.
        cameras: the held-out views that they were judged through.
        start: when the first began.
    """
    first, alone = compressions[0], len(compressions) == 1
    names = distinct_names([one.budget.name for one in compressions], paths[1:], {first.original.name})
    options = _shared([_choices(one) for one in compressions])
    candidates = []
    seconds: dict[str, float] = {}
    for name, one, path in zip(names, compressions, paths[1:], strict=True):
        subject = subject_of(one.compressed, one.quality, path)
        own = {key: value for key, value in _choices(one).items() if key not in options}
        details = {**subject.details, **({"options": own} if own else {}), **_made(one)}
        candidates.append(replace(subject, name=name, details=details))
        seconds |= {step if alone else f"{name}: {step}": time for step, time in one.seconds.items()}
    speed = first.original.speed
    return EvaluationRecord(
        kind=KIND,
        runs=(start.run(seconds, PACKAGES, {"views": _seed(first)}, speed.threads if speed else None),),
        protocol=_views_protocol(first.quality, cameras) | {"cameras_sha256": cameras.sha256},
        reference=subject_of(first.original, None, paths[0]),
        candidates=tuple(candidates),
        pairs=candidate_pairs(candidates),
        details={"options": options},
    )


def subject_of(
    file: SceneFile, quality: Quality | None, path: Path | None = None, views: Sequence[str] | None = None
) -> Subject:
    """What was measured of a scene.

    Args:
        file: the scene's sizes and speed.
        quality: None for the original.
        path: of the file; None where that is not known.
        views: names of the views that the quality is of; None: "View 1" and so on.
    """
    measurements: dict[str, Measurement] = {}
    parts: dict[str, Part] = {}
    if quality is not None:
        measurements["psnr"] = averaged(quality.psnr, "dB", "PSNR", "higher")
        measurements["ssim"] = averaged(quality.ssim, "", "SSIM", "higher")
        names = views or [f"View {index + 1}" for index in range(len(quality.psnr))]
        parts["views"] = _views(quality, tuple(names))
    measurements["size"] = counted(file.bytes, "bytes", "file size")
    measurements["gaussians"] = counted(file.gaussians, "", "Gaussians")
    measurements["sh_degree"] = counted(file.sh_degree, "", "spherical-harmonic degree", "neither")
    if file.speed is not None:
        measurements["frames_per_second"] = rate(file.speed.times_ms, "frames/s")
        measurements["frame"] = timed(file.speed, "time of a frame")
    parts["attributes"] = _attributes(file)
    details = {} if file.speed is None else {"speed": timing_details(file.speed)}
    name, digest = (None, None) if path is None else (str(path), hash_path(path))
    return Subject(file.name, name, digest, 0, measurements, parts, details)


def _views(quality: Quality, names: tuple[str, ...]) -> Part:
    columns = {
        "psnr": Column(quality.psnr, "dB", "higher", "PSNR"),
        "ssim": Column(quality.ssim, "", "higher", "SSIM"),
    }
    return Part("view", names, columns)


def _attributes(file: SceneFile) -> Part:
    sizes = tuple(float(size) for size in file.bytes_by_attribute.values())
    columns = {"attribute_bytes": Column(sizes, "bytes", "lower", "bytes")}
    return Part("attribute", tuple(file.bytes_by_attribute), columns)


def _views_protocol(quality: Quality, cameras: Cameras) -> dict[str, Any]:
    return {
        "compared_with": quality.reference,
        "views": len(cameras),
        "width": quality.width,
        "height": quality.height,
    }


def _seed(compression: Compression) -> int:
    return int(str(compression.options["seed"]))


def _choices(compression: Compression) -> dict[str, Any]:
    """Its options, but for those that the run and the protocol say."""
    said = ("seed", "judged_on_views")
    return {name: value for name, value in to_json(compression.options).items() if name not in said}


def _shared(all_options: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The options in which all agree."""
    first, *others = all_options
    return {
        name: value for name, value in first.items() if all(name in other and other[name] == value for other in others)
    }


def _made(compression: Compression) -> dict[str, Any]:
    """How a compression came to be: what was asked for and tried, how it was won back, what rounding took again."""
    details: dict[str, Any] = {
        "budget": to_json(compression.budget),
        "trials": to_json(compression.trials),
        "recovery": to_json(compression.recovery),
    }
    before = compression.quality_in_memory
    if before != compression.quality:
        details["before_rounding"] = {"psnr": to_json(before.psnr), "ssim": to_json(before.ssim)}
    return details
