"""Section `dense`: the networks before anything is pruned, and what the short trainings alone do to them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from secateur.console import Report, stretch
from vision.judging import STEPS, cost
from vision.settings import BATCH, Settings
from vision.subjects import KINDS, subject

HOW = (
    "fashion: the demo model. The others are trained by the bench: marked and segmentation on 30,000 canvases of "
    "56x56 pixels in 64 patches, swin on Fashion-MNIST. Scores are on the first 5,000 test pictures of Fashion-MNIST, "
    "or on 2,000 canvases of test pictures: accuracy, or the mean intersection over union. The tuned score is after "
    "the same short training that pruned networks get. Multiply-adds are those of one picture, attention's products "
    "counted; latency is that of 32 pictures."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a network."""
    return {name: partial(_network, name, settings) for name in KINDS}


def _network(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of = subject(name, settings, stretch(report, 0.0, 0.8))
    report(0.8, f"{name}: judging")
    times = settings.times({"dense": of.network}, of.batch())["dense"]
    seeds = settings.seeds if name == "fashion" else settings.seeds[:1]
    rows = [
        {"seed": seed, "accuracy_tuned": of.score(of.trained(of.copied(), STEPS, seed, settings))} for seed in seeds
    ]
    facts = {"accuracy": of.score(of.network), "score": of.task.score_name, "test_pictures": len(of.test)}
    speed = {"latency_ms": times["ms"], "pictures_per_second": 1000 * min(BATCH, len(of.test)) / times["ms"]}
    return {"how": HOW, **facts, **cost(of.network, of), **speed, **of.record, "rows": rows}
