"""The CPU rasteriser: against the prototype on the same views, and frames a second of each scene."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jobs import Draw, alternate, draw_ours, draw_prototype, in_own_process
from parts import Job
from peers import load_prototype
from settings import SCENES, Settings, load, scene_path

from compress3d.splats.rasterize import render
from secateur.console import Report
from secateur.metrics.speed import measure_speed
from secateur.report.record import to_json

SIZES = (400, 800)
BASELINE = "playbot"

HOW = (
    "Held-out views, resized. Ours and the prototype take turns, one warm-up each; a repeat is the mean over the "
    "views. Ours activates the raw tensors in every frame, the prototype's were before. peak_bytes_above: the most "
    "memory while one view is drawn, over what the process held with the scene loaded and the code warm. Differences "
    "are of images clamped to [0, 1], the largest of a pixel's channels."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """Speed of each scene; and the prototype beside ours, where the baseline's scene is among them."""
    parts: dict[str, Job] = {name: partial(_speed, name, settings) for name in settings.scenes}
    if BASELINE in settings.scenes:
        parts["against prototype"] = partial(_against_prototype, settings)
    return parts


def _speed(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene, judge = load(name, settings)
    record: dict[str, Any] = {"gaussians": len(scene), "sh_degree": scene.sh_degree}
    for number, size in enumerate(SIZES):
        report(number / len(SIZES), f"{name}: frames a second at {size}")
        cameras = judge.cameras.resized(size, size)
        speed = measure_speed(partial(_frame, scene, cameras), len(cameras), repeats=settings.repeats)
        record[str(size)] = to_json(speed)
    return record


def _frame(scene: Any, cameras: Any, index: int) -> None:
    render(scene, cameras[index])


def _against_prototype(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    try:
        prototype = load_prototype()
    except FileNotFoundError as absent:
        return {"failed": str(absent)}
    scene, judge = load(BASELINE, settings)
    size = 200 if settings.quick else 800
    cameras = judge.cameras.resized(size, size)
    views = min(len(cameras), 5)
    draws = {"ours": draw_ours(scene, cameras), "prototype": draw_prototype(prototype, scene, cameras)}
    report(0.0, "the prototype and ours, taking turns")
    times = alternate(draws, views, settings.repeats)
    report(0.7, "the prototype and ours: differences")
    differences = _differences(draws, views)
    report(0.8, "the prototype and ours: memory")
    memory = {}
    for who in draws:
        record, _, _ = in_own_process("render", scene_path(BASELINE), size, who, limit_seconds=settings.limit_seconds)
        memory[who] = record["peak_bytes_above"]
    return {
        "how": HOW,
        "scene": SCENES[BASELINE],
        "size": size,
        "times": times,
        "prototype_over_ours": {
            key: times["prototype"][key] / times["ours"][key] for key in ("minimum_ms", "median_ms")
        },
        "differences": differences,
        "peak_bytes_above": memory,
    }


def _differences(draws: dict[str, Draw], views: int) -> dict[str, float]:
    """Over all pixels of some views."""
    images = {
        who: np.clip(np.stack([draw(view).astype(np.float64) for view in range(views)]), 0, 1)
        for who, draw in draws.items()
    }
    differences = np.abs(images["ours"] - images["prototype"]).max(axis=-1)
    return {
        "largest": float(differences.max()),
        "mean": float(differences.mean()),
        "share_of_pixels_over_1_1000": float((differences > 1e-3).mean()),
        "share_of_pixels_over_1_255": float((differences > 1 / 255).mean()),
        "psnr": float(-10 * np.log10(((images["ours"] - images["prototype"]) ** 2).mean())),
    }
