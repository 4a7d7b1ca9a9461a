"""Section `dense`: the demo models before anything is pruned."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from denoisers.entrants import prunable_share
from denoisers.settings import Settings
from denoisers.subjects import subject
from secateur.console import Report

HOW = (
    "FD is the Frechet distance on the features of a small classifier, which is named; it is no FID. Its floor is "
    "that of as many real pictures. Samples are drawn by DDIM (sampler_steps) without guidance, evenly by class, other "
    "ones for each seed. Accuracy is the share of samples that the classifier takes for what was asked for. "
    "Multiply-adds are those of one model call for one sample, attention's products included."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a model."""
    return {name: partial(_model, name, settings) for name in settings.models}


def _model(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of = subject(name)
    rows = []
    for number, seed in enumerate(settings.seeds):
        report(number / len(settings.seeds), f"{name}: judging")
        rows.append({"seed": seed} | settings.judged(of, {}, seed)[0])
    cost = settings.cost(of, of.dense)
    return {
        "how": HOW,
        "samples": settings.samples(of),
        "sampler_steps": settings.steps(of),
        "units": {group.name: group.size for group in of.units.groups()},
        "prunable_share": prunable_share(of.units),
        **{key: cost[key] for key in ("params", "macs", "peak_tensor_bytes", "latency_ms")},
        "rows": rows,
    }
