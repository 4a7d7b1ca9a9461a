"""An evaluation of splat scenes as the record that all evaluations share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress3d.cameras import Cameras
from compress3d.splats.evaluate import PACKAGES, Evaluation, Quality, SceneFile
from secateur.evaluation.measurements import averaged, counted, rate, timed
from secateur.evaluation.merge import candidate_pairs
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
        details={"options": to_json(evaluation.options)},
    )


def _protocol(evaluation: Evaluation, cameras: Cameras) -> dict[str, Any]:
    options, quality = evaluation.options, evaluation.candidates[0].quality
    protocol: dict[str, Any] = {
        "compared_with": quality.reference,
        "views": len(cameras),
        "width": quality.width,
        "height": quality.height,
    }
    if options["views_given"]:
        digest = hashlib.sha256(cameras.Ks.numpy().tobytes() + cameras.viewmats.numpy().tobytes())
        return protocol | {"cameras_sha256": digest.hexdigest()}
    return protocol | {"views_seed": options["seed"], "views_up": list(options["up"])}  # type: ignore[call-overload]


def subject_of(file: SceneFile, quality: Quality | None, path: Path | None = None) -> Subject:
    """What was measured of a scene.

    Args:
        file: the scene's sizes and speed.
        quality: None for the original.
        path: of the file; None where that is not known.
    """
    measurements: dict[str, Measurement] = {}
    parts: dict[str, Part] = {}
    if quality is not None:
        measurements["psnr"] = averaged(quality.psnr, "dB", "PSNR", "higher")
        measurements["ssim"] = averaged(quality.ssim, "", "SSIM", "higher")
        parts["views"] = _views(quality)
    measurements["size"] = counted(file.bytes, "bytes", "file size")
    measurements["gaussians"] = counted(file.gaussians, "", "Gaussians")
    measurements["sh_degree"] = counted(file.sh_degree, "", "spherical-harmonic degree", "neither")
    if file.speed is not None:
        measurements["frames_per_second"] = rate(file.speed.times_ms, "frames/s")
        measurements["frame"] = timed(file.speed, "time of a frame")
    parts["attributes"] = _attributes(file)
    details = {"speed": to_json(file.speed)}
    name, digest = (None, None) if path is None else (str(path), hash_path(path))
    return Subject(file.name, name, digest, 0, measurements, parts, details)


def _views(quality: Quality) -> Part:
    names = tuple(f"View {index + 1}" for index in range(len(quality.psnr)))
    columns = {
        "psnr": Column(quality.psnr, "dB", "higher", "PSNR"),
        "ssim": Column(quality.ssim, "", "higher", "SSIM"),
    }
    return Part("view", names, columns)


def _attributes(file: SceneFile) -> Part:
    sizes = tuple(float(size) for size in file.bytes_by_attribute.values())
    columns = {"attribute_bytes": Column(sizes, "bytes", "lower", "bytes")}
    return Part("attribute", tuple(file.bytes_by_attribute), columns)
