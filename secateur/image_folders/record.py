"""The shared record of an evaluation, of folders of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from secateur.evaluation.distances import distance_details, distance_measurements
from secateur.evaluation.measurements import averaged, counted, mean_of
from secateur.evaluation.merge import candidate_pairs
from secateur.evaluation.naming import distinct_names
from secateur.evaluation.record import Better, Column, EvaluationRecord, Measurement, Part, Subject
from secateur.evaluation.run import Start, hash_path
from secateur.image_folders.results import Comparison, FolderResult, Settings
from secateur.metrics.distribution import frechet_name

PACKAGES = ("secateur", "torch", "torchmetrics", "transformers", "numpy", "scipy", "pillow")
PAIRS = "pairs"
"""Name of the part with a row for each pair of images."""

_LABELS: dict[str, tuple[str, str, Better]] = {
    "psnr": ("PSNR", "dB", "higher"),
    "ssim": ("SSIM", "", "higher"),
}


def record_of(found: Comparison, start: Start, settings: Settings) -> EvaluationRecord:
    """What was found, in the form that all evaluations share."""
    reference = _reference(found, settings.seed)
    paths = [result.folder.path for result in found.candidates]
    names = distinct_names([path.resolve().name for path in paths], paths, {reference.name})
    networks = found.networks
    protocol: dict[str, Any] = {
        "networks": {one.name: one.weights_sha256 for one in networks.looking},
        "paired": not settings.unpaired,
        "seed": settings.seed,
    }
    if networks.perceptual is not None:
        protocol["lpips"] = networks.perceptual.weights_sha256
    if settings.captions is not None:
        protocol["captions"] = hash_path(settings.captions)
    candidates = tuple(
        _candidate(result, name, found, settings) for result, name in zip(found.candidates, names, strict=True)
    )
    return EvaluationRecord(
        kind="images",
        runs=(start.run(found.seconds, PACKAGES, {"subsets, halves and intervals": settings.seed}),),
        protocol=protocol,
        reference=reference,
        candidates=candidates,
        pairs=candidate_pairs(candidates, seed=settings.seed),
        details={"not_measured": found.missing},
    )


def _reference(found: Comparison, seed: int) -> Subject:
    folder = found.reference
    measurements: dict[str, Measurement] = {}
    for features, floor in found.floors.items():
        title = frechet_name(features)
        halves = f"real against real, {floor.images} images each"
        measurements[f"{title.lower()}-floor"] = mean_of(
            floor.frechet, "", f"{title}: {halves}", "neither", samples=floor.images
        )
        measurements[f"kid-{features}-floor".lower()] = mean_of(
            floor.kid, "", f"KID-{features}: {halves}", "neither", samples=floor.images
        )
    clip = found.networks.clip
    if found.cmmd_floor is not None and clip is not None:
        label = f"CMMD-{clip.name}: real against real, {len(folder) // 2} images each"
        measurements[f"cmmd-{clip.name}-floor".lower()] = mean_of(
            found.cmmd_floor, "", label, "neither", samples=len(folder) // 2
        )
    parts: dict[str, Part] = {}
    if found.clip_scores and clip is not None:
        _add_clip_scores(clip.name, found.clip_scores, measurements, parts, seed)
    measurements |= _sizes(len(folder), folder.bytes)
    return Subject(folder.name, str(folder.path), hash_path(folder.path), measurements=measurements, parts=parts)


def _candidate(result: FolderResult, name: str, found: Comparison, settings: Settings) -> Subject:
    folder = result.folder
    measurements: dict[str, Measurement] = {}
    parts: dict[str, Part] = {}
    for one in result.distances:
        measurements |= distance_measurements(one.distances, one.features, one.error)
    clip = found.networks.clip
    if result.cmmd is not None and clip is not None:
        measurements[f"cmmd-{clip.name}".lower()] = mean_of(
            result.cmmd, "", f"CMMD-{clip.name}", "lower", samples=len(folder)
        )
    if result.clip_scores and clip is not None:
        _add_clip_scores(clip.name, result.clip_scores, measurements, parts, settings.seed)
    details: dict[str, Any] = {
        "distances": {one.distances.name: distance_details(one.distances) for one in result.distances}
    }
    if result.pairs is not None and result.pairs.names:
        _add_pairs(result, found, measurements, parts, settings.seed)
    if result.pairs is not None:
        details["pairs_of_other_size"] = list(result.pairs.other_size)
    measurements |= _sizes(len(folder), folder.bytes)
    return Subject(name, str(folder.path), hash_path(folder.path), 0, measurements, parts, details)


def _sizes(images: int, total: int) -> dict[str, Measurement]:
    return {
        "images": counted(images, "", "images", "neither"),
        "size": counted(total, "bytes", "size of the files", "neither"),
    }


def pair_columns(result: FolderResult, found: Comparison) -> dict[str, tuple[str, str, Better, tuple[float, ...]]]:
    """Metric -> its label, unit, which way is better, and a number for each pair, not all of them finite."""
    pairs = result.pairs
    if pairs is None:
        return {}
    columns = {"psnr": (*_LABELS["psnr"], pairs.psnr)}
    if any(map(math.isfinite, pairs.ssim)):
        columns["ssim"] = (*_LABELS["ssim"], pairs.ssim)
    perceptual = found.networks.perceptual
    if perceptual is not None and pairs.lpips is not None and any(map(math.isfinite, pairs.lpips)):
        columns[perceptual.name.lower()] = (perceptual.name, "", "lower", pairs.lpips)
    return columns


def _add_pairs(
    result: FolderResult, found: Comparison, measurements: dict[str, Measurement], parts: dict[str, Part], seed: int
) -> None:
    """PSNR over pairs that differ, for one that does not would make the mean infinite; their number is beside it."""
    pairs = result.pairs
    assert pairs is not None
    columns = {}
    for name, (label, unit, better, values) in pair_columns(result, found).items():
        finite = [value for value in values if math.isfinite(value)]
        measurements[name] = averaged(finite or [math.inf], unit, label, better, seed=seed)
        shown = tuple(value if math.isfinite(value) else None for value in values)
        columns[name] = Column(shown, unit, better, label)
    measurements["pairs"] = counted(len(pairs.names), "", "pairs of one name", "neither")
    measurements["equal_pairs"] = counted(sum(map(math.isinf, pairs.psnr)), "", "pairs that are equal", "neither")
    parts[PAIRS] = Part("image", pairs.names, columns)


def _add_clip_scores(
    clip: str,
    scores: Mapping[str, float],
    measurements: dict[str, Measurement],
    parts: dict[str, Part],
    seed: int,
) -> None:
    name, label = f"clip-score-{clip}".lower(), f"CLIP score, {clip}"
    values = tuple(scores.values())
    measurements[name] = averaged(values, "", label, "higher", seed=seed)
    parts["captions"] = Part("image", tuple(scores), {name: Column(values, "", "higher", label)})
