"""The record and the page of a trained scene, beside the photographs that it was judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from compress3d.captures import Capture
from compress3d.photographs import photographs_protocol, photographs_subject
from compress3d.splats.photographs import beside_photograph
from compress3d.splats.record import KIND, subject_of
from compress3d.splats.scene import SplatScene
from compress3d.splats.train import PACKAGES, TrainRecord
from secateur.evaluation.record import EvaluationRecord
from secateur.evaluation.run import Start
from secateur.quantities import format_decibels
from secateur.report.evaluation import option_details
from secateur.report.page import Page, Plot, Point, Result, View, as_pictures, errors_between
from secateur.report.record import to_json

PICTURES = 6
"""Photographs that the page shows, of those that the scene is judged by."""

_CURVE_POINTS = 8


def training_record(training: TrainRecord, capture: Capture, paths: Sequence[Path], start: Start) -> EvaluationRecord:
    """The shared record of a training: the scene beside the photographs that it was judged by.

    Args:
        training: what was done.
        capture: the photographs.
        paths: of the photographs, then of the scene.
        start: when it began.
    """
    views = capture.test.tolist()
    scene = subject_of(training.scene, training.quality, paths[1], [capture.names[index] for index in views])
    fit = {name: value for name, value in to_json(training.fit).items() if name != "seconds"}
    watched = {"views": training.watched_views, "psnr": to_json(training.watched)}
    options = {name: value for name, value in training.options.items() if name not in ("seed", "steps")}
    details = {**scene.details, "options": to_json(options), "fit": fit, "watched": watched}
    speed = training.scene.speed
    seeds = {"training": int(str(training.options["seed"]))}
    return EvaluationRecord(
        kind=KIND,
        runs=(start.run(training.seconds, PACKAGES, seeds, speed.threads if speed else None),),
        protocol=photographs_protocol(capture, views),
        reference=photographs_subject(capture, views, paths[0]),
        candidates=(replace(scene, details=details),),
    )


def training_page(record: EvaluationRecord, training: TrainRecord, scene: SplatScene, capture: Capture) -> Page:
    """The pictures of a training; its numbers come from the record.

    Args:
        record: as `training_record` makes it.
        training: what was done.
        scene: what it made, as its file holds it.
        capture: the photographs; those of the training split are shown where there are none to judge by.
    """
    indices = capture.test if len(capture.test) else capture.train
    shown = torch.linspace(0, len(indices) - 1, min(PICTURES, len(indices))).round().long()
    pairs = [beside_photograph(scene, capture, int(indices[view])) for view in shown]
    renders, photographs = (
        as_pictures([image.cpu().numpy() for image in images]) for images in zip(*pairs, strict=True)
    )
    quality = training.quality
    captions = tuple("" if quality is None else format_decibels(quality.psnr[view]) for view in shown.tolist())
    errors = tuple(errors_between(*pair) for pair in zip(renders, photographs, strict=True))
    names = (capture.names[int(indices[view])] for view in shown)
    (subject,) = record.candidates
    return Page(
        record.reference.name,
        _subtitle(training, capture),
        "Photograph",
        tuple(View(name, image) for name, image in zip(names, photographs, strict=True)),
        (Result(subject.name, images=renders, errors=errors, captions=captions),),
        (_curve(training),),
        option_details(subject.details["options"]),
    )


def _subtitle(record: TrainRecord, capture: Capture) -> str:
    width, height = capture.cameras.width, capture.cameras.height
    trained = f"A scene trained for {record.fit.steps:,} steps on {record.options['photographs']} photographs"
    if record.quality is None:
        return f"{trained} at {width}x{height}; the capture has no test split to judge it by."
    return f"{trained}, judged by {len(record.quality.psnr)} others that it has never seen, at {width}x{height}."


def _curve(record: TrainRecord) -> Plot:
    every = max(1, len(record.watched) // _CURVE_POINTS)
    points = tuple(Point(step, psnr, f"{psnr:.1f}") for step, psnr in record.watched[::-1][::every])
    return Plot("Quality as it trained", "step", f"mean PSNR in dB of {record.watched_views}", points)
