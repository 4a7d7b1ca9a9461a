"""The systems of the literature side by side: trained on the same photographs for the same number of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts import Job
from peers import SHARED
from settings import Settings

from compress3d.captures import Capture, read_capture
from compress3d.splats import read_scene
from compress3d.splats.anchors import (
    AnchorGrower,
    ForestField,
    ForestGrower,
    GrowthSchedule,
    ScaffoldField,
    save_field,
    start_points,
    train_field,
)
from compress3d.splats.anchors.train import field_images
from compress3d.splats.compensation import FeatureHead
from compress3d.splats.densify import MarkovChain
from compress3d.splats.formats import write_scene
from compress3d.splats.photographs import quality_to_photographs
from compress3d.splats.pruning import PruneAt, radsplat, spectral_selection, sundae
from compress3d.splats.scene import SplatScene
from compress3d.splats.sundae import Compensate, CompensatedScene, save_compensated
from compress3d.splats.train import Training, train
from secateur.allocation import Budget, allocate
from secateur.console import Report, stretch
from secateur.importance import Random
from secateur.metrics.image import psnr, ssim
from secateur.metrics.speed import measure_speed
from secateur.units import Criterion

CAPTURES = {"chair": ("nerf_synthetic/chair", None), "fox": ("fox", 480)}
"""Folder in `shared/data`, and the most pixels of the longer side."""

STEPS = 2500
KEEP = 0.25
ABLATED = (0.5, 0.2, 0.05)

TRAININGS: dict[str, Training] = {
    "3DGS": Training(),
    "3DGS-MCMC": Training(density=MarkovChain(), max_gaussians=40_000),
    "RadSplat pruning": Training(pruning=radsplat()),
    "SUNDAE pruning, 25 %": Training(pruning=sundae(KEEP)),
    "random pruning, 25 %": Training(pruning=PruneAt(sundae(KEEP).at, Random(), sundae(KEEP).budget)),
    "visibility pruning, 25 %": Training(pruning=PruneAt((0.6,), budget=Budget(share=KEEP))),
}

HOW = (
    "Every method learns for the same number of steps, one photograph each, from the same start. psnr and ssim: of "
    "what is in memory, against the photographs of the test split. bytes: all that is needed to decode it; of a scene, "
    "its .sog, whose own quality after rounding is file_psnr. minutes: of training. frames_per_second: of test views, "
    "with whatever must be decoded for each."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a capture and method."""
    methods: dict[str, Callable[..., dict[str, Any]]] = {
        name: partial(_trained, training) for name, training in TRAININGS.items()
    }
    methods |= {"Scaffold-GS": partial(_field, "scaffold"), "GaussianForest": partial(_field, "forest")}
    methods |= {"SUNDAE, 25 %": _sundae, "SUNDAE ablation": _ablation}
    return {
        f"{capture}: {name}": partial(_row, capture, name, method, settings)
        for capture in CAPTURES
        for name, method in methods.items()
    }


def _row(
    name: str, method: str, measure: Callable[..., dict[str, Any]], settings: Settings, report: Report, folder: Path
) -> dict[str, Any]:
    place, long_side = CAPTURES[name]
    path = SHARED / "data" / place
    if not path.exists():
        raise FileNotFoundError(f"no capture {name}: shared/data/{place} is absent beside the checkout")
    capture = read_capture(path, long_side=64 if settings.quick else long_side)
    steps = 20 if settings.quick else STEPS
    facts = {
        "how": HOW,
        "capture": name,
        "method": method,
        "width": capture.cameras.width,
        "height": capture.cameras.height,
        "train_photographs": len(capture.train),
        "test_photographs": len(capture.test),
        "skipped": capture.skipped,
        "steps": steps,
    }
    return facts | measure(capture, steps, folder, lambda done, doing: report(done, f"{name}, {method}: {doing}"))


def _trained(training: Training, capture: Capture, steps: int, folder: Path, report: Report) -> dict[str, Any]:
    scene, record = train(capture, steps=steps, training=training, report=report)
    path = folder / "scene.sog"
    write_scene(scene, path)
    quality, speed = record.quality, record.scene.speed
    assert quality is not None and speed is not None
    return {
        "psnr": quality.mean_psnr,
        "ssim": quality.mean_ssim,
        "gaussians": len(scene),
        "bytes": path.stat().st_size,
        "file_psnr": quality_to_photographs(read_scene(path), capture, capture.test.tolist()).mean_psnr,
        "frames_per_second": speed.frames_per_second,
        "minutes": record.seconds["train"] / 60,
    }


def _sundae(capture: Capture, steps: int, folder: Path, report: Report) -> dict[str, Any]:
    """Continuous spectral pruning for four fifths of the steps, then scene and head together."""
    first = round(0.8 * steps)
    scene, record = train(
        capture, steps=first, training=Training(pruning=sundae(KEEP)), report=stretch(report, 0.0, 0.8)
    )
    start = time.perf_counter()
    compensated = _compensated(scene, capture, steps - first, stretch(report, 0.8, 1.0))
    minutes = (record.seconds["train"] + time.perf_counter() - start) / 60
    test = capture.subset(capture.test)
    speed = measure_speed(
        lambda frame: compensated.render(test.cameras[frame], test.background), min(4, len(test.cameras))
    )
    return _both(compensated, capture) | {
        "gaussians": len(compensated),
        "bytes": save_compensated(folder / "scene.safetensors", compensated, half=True),
        "frames_per_second": speed.frames_per_second,
        "minutes": minutes,
    }


def _ablation(capture: Capture, steps: int, folder: Path, report: Report) -> dict[str, Any]:
    """One scene, cut by the spectrum and at random, then trained together with the head."""
    scene, record = train(capture, steps=steps, report=stretch(report, 0.0, 0.5))
    assert record.quality is not None
    criteria: dict[str, Criterion] = {"spectral": spectral_selection(), "random": Random()}
    kinds = [(keep, name) for keep in ABLATED for name in criteria]
    rows = []
    for number, (keep, name) in enumerate(kinds):
        part = stretch(report, 0.5 + 0.5 * number / len(kinds), 0.5 + 0.5 * (number + 1) / len(kinds))
        cut = scene.cut(allocate(criteria[name].score(scene), scene.groups(), Budget(share=keep)))
        after = quality_to_photographs(cut, capture, capture.test.tolist()).mean_psnr
        compensated = _compensated(cut, capture, max(1, steps // 10), part)
        facts = {"share": keep, "selection": name, "gaussians": len(cut), "psnr_after_cut": after}
        rows.append(facts | _both(compensated, capture))
    return {"psnr_before": record.quality.mean_psnr, "gaussians_before": len(scene), "cuts": rows}


def _compensated(scene: SplatScene, capture: Capture, steps: int, report: Report) -> CompensatedScene:
    start = CompensatedScene.start(scene, FeatureHead(features=4))
    return Compensate(steps)(start, [capture.subset(capture.train)], report=report)[0]


def _both(compensated: CompensatedScene, capture: Capture) -> dict[str, float]:
    """PSNR and SSIM with the head, and PSNR without it."""
    test = capture.subset(capture.test)
    photographs = torch.stack([test.image(index) for index in range(len(test))])
    with torch.no_grad():
        pairs = zip(*compensated.render_both(test.cameras, test.background), strict=True)
        shown, plain = (torch.stack(images).clamp(0, 1) for images in pairs)
    without = float(psnr(plain, photographs).mean())
    return {
        "psnr": float(psnr(shown, photographs).mean()),
        "ssim": float(ssim(shown, photographs).mean()),
        "psnr_without_head": without,
    }


def _field(method: str, capture: Capture, steps: int, folder: Path, report: Report) -> dict[str, Any]:
    points, schedule = start_points(capture), GrowthSchedule.scaled(steps)
    start = time.perf_counter()
    if method == "scaffold":
        scaffold = ScaffoldField.from_points(points)
        train_field(scaffold, capture, AnchorGrower(scaffold, schedule), steps=steps, report=report)
        field: ScaffoldField | ForestField = scaffold
    else:
        forest = ForestField.from_points(points)
        train_field(forest, capture, ForestGrower(forest, schedule), steps=steps, report=report)
        field = forest
    minutes = (time.perf_counter() - start) / 60
    photographs = torch.stack([capture.image(index) for index in capture.test.tolist()])
    shown = field_images(field, capture, capture.test)
    speed = measure_speed(lambda one: field_images(field, capture, capture.test[one : one + 1]), min(4, len(shown)))
    return {
        "psnr": float(psnr(shown, photographs).mean()),
        "ssim": float(ssim(shown, photographs).mean()),
        field.group: len(field),
        "bytes": save_field(folder / "field.safetensors", field, half_features=True),
        "frames_per_second": speed.frames_per_second,
        "minutes": minutes,
    }
