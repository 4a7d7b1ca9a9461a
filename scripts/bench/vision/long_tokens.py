"""The long parts of section `tokens`: at twice the dense model's throughput, after a full fine-tuning."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from secateur.console import Report
from vision.judging import cost
from vision.settings import Settings, as_speed
from vision.subjects import Subject, subject
from vision.tokens import DENSE, METHODS, finished, measured_speed, trained
from vit.tokens import Counts, ReducedModel
from vit.tokens.costs import Place
from vit.tokens.pruner import TokenPruner
from vit.units.layouts import layers

HOW = (
    "As the authors of Token Cropr train: a full fine-tuning, of 5000 steps of 64 pictures with AdamW (largest rate "
    "0.003, 0.6 times that from each layer to the one below, a cosine, averaged weights of decay 0.998), half labels, "
    "half the dense model's outputs at temperature 2, the same for all methods, and for the dense model as control, of "
    "the first seed. "
    "Patches go before layers. The counts are for about twice the dense model's throughput: with the class token 32 "
    "and 16, since torch's attention on CPUs is fast for multiples of 16. ToMe merges half of the patches at most, so "
    "it keeps a few more where others lose more than half. Speed is measured as after the short training."
)
SPEED_HOW = (
    "The networks of the long parts before their training, which changes no shape: all take turns on the same "
    "pictures. throughput_of_random: pictures per second over those of random dropping."
)
METHOD_NAMES = ("random", "ToMe", "Cropr")
PATCHES = (49, 31, 15, 7, 3)
"""Patches that the layers of the demo model see."""

SPEED_BATCHES = (1, 8, 32, 128)

PLACE: Place = "before layer"


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a method, one for the control, and one for speed by batch."""
    found: dict[str, Job] = {f"{DENSE}: long": partial(_control, settings)}
    found |= {f"{method}: 2x, long": partial(_method, method, settings) for method in METHOD_NAMES}
    return found | {"speed: 2x, long": partial(_speed, settings)}


def built(of: Subject, method: str, seed: int) -> ReducedModel:
    """A copy of the dense network whose tokens go, before any training."""
    before = (PATCHES[0], *PATCHES)
    at = tuple(layer for layer, count in enumerate(PATCHES) if count < before[layer])
    pruner = METHODS[method](layers(of.network)[0].width, len(of.training.classes), at, 1, seed)
    return ReducedModel(of.copied(), pruner, Counts(reachable(pruner)), place=PLACE).eval()


def reachable(pruner: TokenPruner) -> tuple[int, ...]:
    """The counts, or the fewest patches that the pruner can leave where these are more."""
    left = [PATCHES[0]]
    for count in PATCHES[1:]:
        left.append(min(left[-1], max(count, pruner.fewest(left[-1]))))
    return tuple(left)


def _control(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of, rows, options = subject("fashion", settings), [], settings.long_recovery()
    # One is enough: nothing is claimed of the dense model after training.
    seed = settings.seeds[0]
    tuned = of.fine_tuned(of.copied(), options, seed)
    rows.append({"method": DENSE, "seed": seed, "steps": options.steps, "accuracy_tuned": of.score(tuned)})
    facts = {"score": of.task.score_name, "accuracy": of.score(of.network)} | cost(of.network, of)
    return {"how": HOW, **facts, "rows": rows}


def _method(method: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of, rows, options = subject("fashion", settings), [], settings.long_recovery()
    patches: tuple[int, ...] = ()
    for number, seed in enumerate(settings.seeds):
        report(number / len(settings.seeds), f"{method}, long, seed {seed}")
        reduced = built(of, method, seed)
        patches = reachable(reduced.pruner)
        facts: dict[str, Any] = {"method": method, "seed": seed, "steps": options.steps, "accuracy": of.score(reduced)}
        final = finished(trained(of, reduced, options, seed))
        facts |= {"accuracy_tuned": of.score(final)} | cost(final, of)
        if seed == settings.seeds[0]:
            facts |= measured_speed(of, final, built(of, "random", seed), settings)
        rows.append(facts)
    return {"how": HOW, "score": of.task.score_name, "patches": list(patches), "rows": rows}


def _speed(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of, rows = subject("fashion", settings), list[dict[str, Any]]()
    networks = {DENSE: of.network} | {method: finished(built(of, method, 0)) for method in METHOD_NAMES}
    for number, batch in enumerate(SPEED_BATCHES):
        report(number / len(SPEED_BATCHES), f"speed, batches of {batch}")
        times = settings.times(networks, of.batch(batch))
        for method in METHOD_NAMES:
            facts = as_speed(times[method], times[DENSE], batch)
            facts["throughput_of_random"] = times["random"]["cpu_ms"] / times[method]["cpu_ms"]
            rows.append({"method": method, "batch": batch} | facts)
    return {"how": SPEED_HOW, "rows": rows}
