"""An evaluation of vision transformers as the record that all evaluations share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.evaluation.measurements import mean_of, rate
from secateur.evaluation.merge import candidate_pairs
from secateur.evaluation.network import network_costs, network_details
from secateur.evaluation.record import Column, EvaluationRecord, Measurement, Part, Subject
from secateur.evaluation.run import Start, hash_path
from secateur.report.record import to_json
from vit.choose import demo_folder
from vit.data import LabelledImages
from vit.evaluate import PACKAGES, Classified, EvaluatedModel, Evaluation

KIND = "vit"


def record_of(
    evaluation: Evaluation, paths: Sequence[Path], start: Start, images: LabelledImages, reference: str
) -> EvaluationRecord:
    """The shared record of an evaluation.

    Args:
        evaluation: what was measured.
        paths: of the dense model, then the candidates.
        start: when it began.
        images: that it was measured on.
        reference: what the dense model is called.
    """
    models = (evaluation.reference, *evaluation.candidates)
    names = (reference, *(one.name for one in evaluation.candidates))
    dense, *candidates = (
        subject_of(one, name, evaluation, path) for one, name, path in zip(models, names, paths, strict=True)
    )
    cost = evaluation.reference.cost
    return EvaluationRecord(
        kind=KIND,
        runs=(start.run(evaluation.seconds, PACKAGES, {"intervals": 0}, cost.latency.threads),),
        protocol={
            "images": evaluation.images,
            "images_sha256": _hash_of(images),
            "classes": list(evaluation.classes),
            "batch_size": cost.batch_size,
        },
        reference=dense,
        candidates=tuple(candidates),
        pairs=candidate_pairs(candidates),
    )


def _hash_of(images: LabelledImages) -> str:
    digest = hashlib.sha256(images.images.contiguous().numpy().data)
    digest.update(images.labels.contiguous().numpy().data)
    return digest.hexdigest()


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
    folder = Path(demo_folder(str(path)))
    digest = hash_path(folder) if folder.exists() else None
    return Subject(name, str(path), digest, 0, measurements, parts, details)


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
