"""Section `recovered`: the same cuts after the same short training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from denoisers.entrants import ENTRANTS, GATES_AT, repaired, small
from denoisers.settings import Settings
from denoisers.subjects import subject
from secateur.console import Report

HOW = (
    "The cuts of the section one_shot, as they are and after repair, then 100 steps of 64 pictures with AdamW (largest "
    "rate 0.0005, a cosine) on the training loss and the difference to the dense model's outputs. 'long': EcoDiff's, "
    "repaired, after ten times as many steps."
)
LONG = 10


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a model, share, method and seed; the share that EcoDiff's gates are fitted to comes first."""
    found: dict[str, Job] = {
        f"{name}: {method}: {share:.0%}: seed {seed}": partial(_method, name, method, share, seed, settings)
        for name in settings.models
        for share in sorted(settings.shares, key=lambda share: abs(share - GATES_AT))
        for method in reversed(ENTRANTS)
        for seed in settings.seeds
    }
    return found | {
        f"{name}: EcoDiff: {GATES_AT:.0%}, long: seed {seed}": partial(_long, name, seed, settings)
        for name in settings.models
        for seed in settings.seeds
    }


def _method(
    name: str, method: str, share: float, seed: int, settings: Settings, report: Report, folder: Path
) -> dict[str, Any]:
    of = subject(name)
    report(0.0, f"{name}: {method} at {share:.0%}, seed {seed}: recovery")
    pruned, _ = small(name, method, settings, share, seed)
    starts = {"False": pruned.module, "True": repaired(name, pruned, settings, seed).module}
    models = {key: settings.recovered(of, module, seed) for key, module in starts.items()}
    dense, figures = settings.judged(of, models, seed)
    facts = {"share": share, "seed": seed}
    return {"how": HOW, "dense": dense, "rows": [facts | {"repaired": k == "True"} | v for k, v in figures.items()]}


def _long(name: str, seed: int, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of = subject(name)
    report(0.0, f"{name}: EcoDiff at {GATES_AT:.0%}, seed {seed}: long recovery")
    pruned, _ = small(name, "EcoDiff", settings, GATES_AT, seed)
    start = repaired(name, pruned, settings, seed).module
    dense, figures = settings.judged(of, {"recovered": settings.recovered(of, start, seed, times=LONG)}, seed)
    row = {"share": GATES_AT, "seed": seed, "repaired": True, "steps": settings.recovery_steps * LONG}
    return {"how": HOW, "dense": dense, "rows": [row | figures["recovered"]]}
