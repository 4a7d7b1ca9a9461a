"""Section `handover`: splats that start from the chair's field, and that learn from its renders."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from compress3d.captures import Capture
from compress3d.nerf.field import Field
from compress3d.nerf.points import surface_points
from compress3d.nerf.teacher import teacher_capture, views_around
from compress3d.splats.photographs import quality_to_photographs
from compress3d.splats.train import Training, train
from fields.chair import trained_field
from fields.settings import Settings
from secateur.console import Report, stretch

HOW = (
    "Splats trained for so many steps, one picture each, from as many points, and judged by the chair's test "
    "photographs. 'photographs': from points in the visual hull, as splats start by themselves. 'points of the field': "
    "from where rays of the training views end in the trained field, as RadSplat starts. 'points and renders of the "
    "field': the pictures are the field's own, from all around, and no photograph is seen."
)
STEPS = (250, 1000)
POINTS, RENDERS, RENDER_SIZE = 20_000, 100, 400


def jobs(settings: Settings) -> dict[str, Job]:
    """A part for each length of training."""
    return {f"{steps} steps": partial(_starts, settings, steps) for steps in ((2,) if settings.quick else STEPS)}


def _starts(settings: Settings, steps: int, report: Report, folder: Path) -> dict[str, Any]:
    field = trained_field(settings, stretch(report, 0.0, 0.2))
    capture, rows = settings.capture, []
    training = Training(start_gaussians=100 if settings.quick else POINTS)
    for number, (name, seen) in enumerate(_captures(settings, field).items()):
        told = stretch(report, 0.2 + 0.25 * number, 0.45 + 0.25 * number)
        scene, record = train(seen, steps=steps, training=training, report=told)
        quality = quality_to_photographs(scene, capture, settings.judging)
        seconds = record.seconds["train"]
        rows.append({"start": name, "psnr": quality.mean_psnr, "gaussians": len(scene), "seconds": seconds})
    return {"how": HOW, "steps": steps, "rows": rows}


def _captures(settings: Settings, field: Field) -> dict[str, Capture]:
    capture = settings.capture
    count, size = (100, 24) if settings.quick else (POINTS, RENDER_SIZE)
    points = surface_points(field, capture.cameras[capture.train], count)
    around = views_around(field.box, 8 if settings.quick else RENDERS, size)
    return {
        "photographs": capture,
        "points of the field": replace(capture, points=points),
        "points and renders of the field": replace(teacher_capture(field, around), points=points),
    }
