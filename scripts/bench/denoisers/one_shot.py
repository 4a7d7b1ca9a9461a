"""Section `one_shot`: heads, neurons and channels are cut out by score, with and without OBS repair, no training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from parts import Job
from torch import nn

from denoisers.entrants import ENTRANTS, repaired, small
from denoisers.settings import Settings
from denoisers.subjects import subject
from secateur.console import Report

HOW = (
    "The share is that of the dense model's multiply-adds which is gone from the model that was really cut. Units "
    "compete within their kind (heads, neurons, channels in norm groups), each of which loses the same share. Losses "
    "are those of 128 training pictures at 10 time steps; Diff-Pruning leaves out steps below 5 % of the largest. "
    "EcoDiff: gates fitted once a seed, to 30 % less, in 150 steps of 8 whole trajectories; all shares take "
    "its ranking. Repair: least squares by what layers see along 64 trajectories. Samples are judged as in "
    "the section dense; the latent error is the squared error to the dense model's latents of the same seeds, over "
    "their squares. Latency is that of a forward of 8 samples on one thread, in processor time: the least of 12, in "
    "turns with the dense model."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a model, method and seed."""
    return {
        f"{name}: {method}: seed {seed}": partial(_method, name, method, seed, settings)
        for name in settings.models
        for seed in settings.seeds
        for method in ENTRANTS
    }


def _method(name: str, method: str, seed: int, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    models: dict[str, nn.Module] = {}
    rows: dict[str, dict[str, Any]] = {}
    for number, share in enumerate(settings.shares):
        report(0.7 * number / len(settings.shares), f"{name}: {method} at {share:.0%}, seed {seed}")
        facts: dict[str, Any] = {"share": share, "seed": seed}
        try:
            pruned, found = small(name, method, settings, share, seed)
        except ValueError as error:
            rows[f"{share}"] = facts | {"failed": str(error)}
            continue
        facts |= {"calibration_seconds": found.seconds, "calibration_cpu_seconds": found.cpu_seconds}
        facts |= {"calibration_peak_bytes": found.peak_bytes}
        facts |= settings.cost(subject(name), pruned.module)
        for mended in (False, True):
            key = f"{share} {mended}"
            models[key] = repaired(name, pruned, settings, seed).module if mended else pruned.module
            rows[key] = facts | {"repaired": mended}
    report(0.7, f"{name}: {method}: judging")
    dense, figures = settings.judged(subject(name), models, seed)
    return {"how": HOW, "dense": dense, "rows": [row | figures.get(key, {}) for key, row in rows.items()]}
