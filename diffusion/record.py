"""Evaluations of diffusion models, and runs of recipes, as the record that all runs share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.evaluate import DENSE, PACKAGES, EvaluatedModel, Evaluation
from diffusion.models import Source, find
from secateur.evaluation.distances import distance_details, distance_measurements
from secateur.evaluation.measurements import mean_of, standard_error
from secateur.evaluation.merge import candidate_pairs
from secateur.evaluation.network import network_costs, network_details
from secateur.evaluation.record import Column, EvaluationRecord, Measurement, Part, Run, Subject
from secateur.evaluation.run import Start, hash_path
from secateur.report.record import to_json

if TYPE_CHECKING:
    from diffusion.aptp.run import ExpertsRecord
    from diffusion.outcome import Pruning

KIND = "diffusion"


def record_of(
    evaluation: Evaluation, paths: Sequence[Path], start: Start, protocol: Mapping[str, Any], reference: str
) -> EvaluationRecord:
    """The shared record of an evaluation.

    Args:
        evaluation: what was measured.
        paths: of the dense model, then the candidates.
        start: when it began.
        protocol: how samples were made, beside what the evaluation says itself.
        reference: what the dense model is called.
    """
    models = (evaluation.reference, *evaluation.candidates)
    names = (reference, *(one.name for one in evaluation.candidates))
    dense, *candidates = (subject_of(one, name, path) for one, name, path in zip(models, names, paths, strict=True))
    return _whole(evaluation, dense, candidates, _run(evaluation, start, evaluation.seconds, {}), protocol)


def pruning_record(
    pruning: Pruning, source: Source, output: Path, start: Start, protocol: Mapping[str, Any]
) -> EvaluationRecord:
    """The shared record of a recipe's run: what it made beside the dense model.

    Args:
        pruning: what was done.
        source: of the dense model.
        output: folder that holds the last candidate.
        start: when it began.
        protocol: as in `record_of`.
    """
    last = pruning.evaluation.candidates[-1].name
    details = {
        "component": pruning.component,
        "recipe": pruning.recipe,
        "kept_by_kind": to_json(pruning.kinds),
        "kept_by_group": to_json(pruning.plan.units),
        "repaired": to_json(pruning.repaired),
    }
    made = {} if pruning.recovery is None else {last: {"recovery": to_json(pruning.recovery)}}
    return _of_recipe(pruning, source, {last: output}, start, protocol, details, made)


def experts_record(
    experts: ExpertsRecord, source: Source, written: Mapping[str, Path], start: Start, protocol: Mapping[str, Any]
) -> EvaluationRecord:
    """The shared record of a run that trained experts.

    Args:
        experts: what was done.
        source: of the dense model.
        written: name of a candidate -> the folder that holds it. The others are held by none.
        start: when it began.
        protocol: as in `record_of`.
    """
    details = {
        "component": experts.component,
        "recipe": experts.recipe,
        "routers": to_json(experts.routers),
        "routes": experts.routes,
    }
    return _of_recipe(experts, source, written, start, protocol, details, {})


def _of_recipe(
    record: Pruning | ExpertsRecord,
    source: Source,
    written: Mapping[str, Path],
    start: Start,
    protocol: Mapping[str, Any],
    details: Mapping[str, Any],
    made: Mapping[str, Mapping[str, Any]],
) -> EvaluationRecord:
    """As above; `made` says of a candidate, by its name, how it came to be."""
    evaluation = record.evaluation
    digest = None if source.folder is None else hash_path(source.folder)
    dense = replace(subject_of(evaluation.reference, DENSE), path=source.id, sha256=digest)
    candidates = []
    for one in evaluation.candidates:
        subject, folder = subject_of(one, one.name), written.get(one.name)
        own = {**subject.details, **made.get(one.name, {})}
        candidates.append(replace(subject, path=None if folder is None else str(folder), details=own))
    run = _run(evaluation, start, record.seconds, {"calibration": record.seed})
    return _whole(evaluation, dense, candidates, run, protocol, details)


def _run(evaluation: Evaluation, start: Start, seconds: Mapping[str, float], seeds: Mapping[str, int]) -> Run:
    options, cost = evaluation.options, evaluation.reference.cost
    own = {"first sample": int(str(options["first_seed"])), "intervals": int(str(options["seed"]))}
    return start.run(seconds, PACKAGES, {**own, **seeds}, None if cost is None else cost.latency.threads)


def metrics_of(one: EvaluatedModel) -> dict[str, float | None]:
    """What was measured of a model, for its manifest: name -> value."""
    return {name: found.value for name, found in subject_of(one, one.name).measurements.items()}


def _whole(
    evaluation: Evaluation,
    dense: Subject,
    candidates: Sequence[Subject],
    run: Run,
    protocol: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
) -> EvaluationRecord:
    distances = {found.name: distance_details(found) for found in evaluation.reference.distances}
    return EvaluationRecord(
        kind=KIND,
        runs=(run,),
        protocol={**evaluation.options, **protocol},
        reference=dense,
        candidates=tuple(candidates),
        pairs=candidate_pairs(candidates),
        details={**({"distances": distances} if distances else {}), **(details or {})},
    )


def subject_of(one: EvaluatedModel, name: str, path: Path | None = None) -> Subject:
    """What was measured of a model.

    Args:
        one: the model.
        name: what it is called.
        path: where it lies; None where that is not known.
    """
    measurements: dict[str, Measurement] = {}
    parts: dict[str, Part] = {}
    for distances, error in zip(one.distances, one.frechet_errors, strict=True):
        measurements |= distance_measurements(distances, distances.name.removeprefix("FD-"), error)
    if one.accuracy is not None:
        mean, change = one.accuracy.mean, one.accuracy.change
        count = None if one.accuracy.interval is None else one.accuracy.interval.count
        error = None if count is None else math.sqrt(mean * (1 - mean) / (count - 1))
        measurements["accuracy"] = mean_of(
            mean,
            "share",
            "right class",
            "higher",
            samples=count,
            error=error,
            interval=one.accuracy.interval,
            change=change,
            answers=one.accuracy.answers,
        )
        shares = tuple(one.accuracy.by_class.values())
        columns = {"class_accuracy": Column(shares, "share", "higher", "right class")}
        parts["classes"] = Part("class", tuple(one.accuracy.by_class), columns)
    if one.paired is not None:
        measurements |= _paired(one)
        parts["samples"] = _samples(one)
    if one.cost is not None:
        measurements |= network_costs(one.cost, "sample")
    details = {} if one.cost is None else {"cost": network_details(one.cost)}
    if path is None:
        return Subject(name, None, None, 0, measurements, parts, details)
    folder = find(str(path)).folder
    digest = None if folder is None else hash_path(folder)
    return Subject(name, str(path), digest, 0, measurements, parts, details)


def _paired(one: EvaluatedModel) -> dict[str, Measurement]:
    paired = one.paired
    assert paired is not None
    count = len(paired.latent_mse)
    found = {
        "psnr": mean_of(
            paired.mean_psnr,
            "dB",
            "PSNR",
            "higher",
            samples=count,
            error=standard_error(paired.psnr),
            interval=paired.psnr_interval,
        ),
        "latent_mse": mean_of(
            paired.mean_latent_mse,
            "",
            "squared error of latents",
            "lower",
            samples=count,
            error=standard_error(paired.latent_mse),
            interval=paired.latent_mse_interval,
        ),
        "relative_latent_error": mean_of(
            paired.relative_latent_error, "share", "error of latents over their squares", "lower", samples=count
        ),
    }
    if paired.mean_ssim is not None and paired.ssim is not None:
        found["ssim"] = mean_of(
            paired.mean_ssim,
            "",
            "SSIM",
            "higher",
            samples=count,
            error=standard_error(paired.ssim),
            interval=paired.ssim_interval,
        )
    return found


def _samples(one: EvaluatedModel) -> Part:
    paired = one.paired
    assert paired is not None
    columns = {
        "psnr": Column(paired.psnr, "dB", "higher", "PSNR"),
        "latent_mse": Column(paired.latent_mse, "", "lower", "squared error of latents"),
    }
    if paired.ssim is not None:
        columns["ssim"] = Column(paired.ssim, "", "higher", "SSIM")
    return Part("sample", tuple(f"sample {index + 1}" for index in range(len(paired.psnr))), columns)
