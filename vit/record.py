"""Evaluations of vision transformers, and runs of recipes, as the record that all runs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.evaluation.measurements import mean_of, rate
from secateur.evaluation.merge import candidate_pairs
from secateur.evaluation.network import network_costs, network_details
from secateur.evaluation.record import Column, EvaluationRecord, Measurement, Part, Run, Subject
from secateur.evaluation.run import Start, hash_path
from secateur.report.record import to_json
from vit.choose import demo_folder
from vit.evaluate import DENSE, PACKAGES, Classified, EvaluatedModel, Evaluation

if TYPE_CHECKING:
    from vit.outcome import Pruning

KIND = "vit"


def record_of(evaluation: Evaluation, paths: Sequence[Path], start: Start, reference: str) -> EvaluationRecord:
    """The shared record of an evaluation.

    Args:
        evaluation: what was measured.
        paths: of the dense model, then the candidates.
        start: when it began.
        reference: what the dense model is called.
    """
    models = (evaluation.reference, *evaluation.candidates)
    names = (reference, *(one.name for one in evaluation.candidates))
    dense, *candidates = (
        subject_of(one, name, evaluation, path) for one, name, path in zip(models, names, paths, strict=True)
    )
    return _whole(evaluation, dense, candidates, _run(evaluation, start, evaluation.seconds, {}), {})


def pruning_record(pruning: Pruning, output: Path, start: Start) -> EvaluationRecord:
    """The shared record of a recipe's run: the model behind each step beside the dense one.

    Args:
        pruning: what was done.
        output: folder that holds the last one; the others are held by none.
        start: when it began.
    """
    evaluation = pruning.evaluation
    reference = subject_of(evaluation.reference, DENSE, evaluation)
    candidates = []
    for one, step in zip(evaluation.candidates, pruning.steps, strict=True):
        made = {"step": step.name, "kept_units": to_json(step.units), "tokens": to_json(step.tokens)}
        subject = subject_of(one, one.name, evaluation)
        candidates.append(replace(subject, details={**subject.details, **made}))
    candidates[-1] = replace(candidates[-1], path=str(output))
    return _whole(
        evaluation,
        replace(reference, path=pruning.model, sha256=_hash_of_model(pruning.model)),
        candidates,
        _run(evaluation, start, pruning.seconds, {"calibration": pruning.seed}),
        {"recipe": pruning.recipe, "recoveries": to_json(pruning.recoveries)},
    )


def _run(evaluation: Evaluation, start: Start, seconds: Mapping[str, float], seeds: Mapping[str, int]) -> Run:
    return start.run(seconds, PACKAGES, {"intervals": 0, **seeds}, evaluation.reference.cost.latency.threads)


def metrics_of(one: EvaluatedModel, evaluation: Evaluation) -> dict[str, float | None]:
    """What was measured of a model, for its manifest: name -> value."""
    return {name: found.value for name, found in subject_of(one, one.name, evaluation).measurements.items()}


def _whole(
    evaluation: Evaluation,
    dense: Subject,
    candidates: Sequence[Subject],
    run: Run,
    details: Mapping[str, Any],
) -> EvaluationRecord:
    return EvaluationRecord(
        kind=KIND,
        runs=(run,),
        protocol={
            "images": evaluation.images,
            "images_sha256": evaluation.images_sha256,
            "classes": list(evaluation.classes),
            "batch_size": evaluation.reference.cost.batch_size,
        },
        reference=dense,
        candidates=tuple(candidates),
        pairs=candidate_pairs(candidates),
        details=details,
    )


def _hash_of_model(id: str) -> str | None:
    """Of the folder that a model lies in; None where it lies in none here."""
    folder = Path(demo_folder(id))
    return hash_path(folder) if folder.exists() else None


def subject_of(one: EvaluatedModel, name: str, evaluation: Evaluation, path: Path | None = None) -> Subject:
    """What was measured of a model.

    Args:
        one: the model.
        name: what it is called.
        evaluation: that it is part of.
        path: where it lies; None where that is not known.
    """
    measurements: dict[str, Measurement] = {}
    parts: dict[str, Part] = {}
    details: dict[str, Any] = {"cost": network_details(one.cost)}
    if one.classified is not None:
        measurements |= _answers(one.classified, evaluation.images)
        shares = tuple(one.classified.by_class.values())
        columns = {"class_accuracy": Column(shares, "share", "higher", "accuracy")}
        parts["classes"] = Part("class", tuple(one.classified.by_class), columns)
        details["confusion"] = to_json(one.classified.confusion)
    if one.embedding_error is not None:
        measurements["embedding_error"] = mean_of(
            one.embedding_error, "share", "error of the embedding over its squares", "lower", samples=evaluation.images
        )
    cost = one.cost
    fastest = f"images/s, batch of {cost.batch_size}, fastest"
    rates = rate(cost.latency.times_ms, fastest, value=one.images_per_second, batch=cost.batch_size)
    measurements |= {"images_per_second": rates, **network_costs(cost, "image")}
    if path is None:
        return Subject(name, None, None, 0, measurements, parts, details)
    return Subject(name, str(path), _hash_of_model(str(path)), 0, measurements, parts, details)


def _answers(found: Classified, images: int) -> dict[str, Measurement]:
    return {
        "accuracy": mean_of(
            found.accuracy,
            "share",
            "accuracy",
            "higher",
            samples=images,
            error=found.accuracy_error,
            interval=found.interval,
            change=found.change_interval,
            answers=found.answers,
        ),
        "agreement": mean_of(
            found.agreement, "share", "agreement", "higher", samples=images, error=found.agreement_error
        ),
        "loss": mean_of(found.loss, "nats", "loss", "lower", samples=images, error=found.loss_error),
    }
