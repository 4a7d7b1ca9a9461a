"""Sections `tokens`, `marked` and `segmentation`: fewer tokens on their way through the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secateur.console import Report
from vision.judging import cost
from vision.settings import Settings, as_speed
from vision.subjects import Subject, subject
from vit.recovering import HeadLosses
from vit.tasks.canvases import patch_labels
from vit.tokens import (
    ClsAttention,
    Counts,
    Cropr,
    DynamicViT,
    RandomDropping,
    ReducedModel,
    Target,
    TokenMerging,
    TokenNorm,
)
from vit.tokens.costs import Place
from vit.tokens.pruner import TokenPruner
from vit.train import FineTune
from vit.units.layouts import layers

HOW = (
    "Every method has the same schedule: patches go by an equal rate between the attention and the MLP of each layer, "
    "until 1 / speed of the multiply-adds is left, those of choosing not counted; so random dropping and ToMe get the "
    "same counts at the same places, and Cropr and DynamicViT have a stage in each layer. One score is as the dense "
    "model's weights are (Cropr's queries and DynamicViT's predictors are random then), the tuned one after the same "
    "training for all: 150 steps of 64 pictures with AdamW (largest rate 0.001, a cosine), half labels, half the "
    "dense model's outputs at temperature 2, tokens reduced from the first step on; Cropr's heads and DynamicViT's "
    "ratio losses come on top. 'dense' is the dense model after it. EViT: the class token's attention, the others "
    "fused. Multiply-adds are those of the model as it runs, choosing included. Speed is that of 32 pictures: the "
    "least of 15, in turns with the dense model and with random dropping, for the first seed. Segmentation gives all "
    "tokens back to the last layer, for all methods."
)
PLACE: Place = "between attention and mlp"
STEPS = 150

Make = Callable[[int, int, tuple[int, ...], int, int], TokenPruner]
"""(width, outputs, layers where patches go, queries, seed) -> pruner."""

METHODS: Mapping[str, Make] = {
    "random": lambda width, outputs, at, queries, seed: RandomDropping(seed),
    "ToMe": lambda width, outputs, at, queries, seed: TokenMerging(),
    "EViT": lambda width, outputs, at, queries, seed: ClsAttention("sum"),
    "token norm": lambda width, outputs, at, queries, seed: TokenNorm(),
    "Cropr": lambda width, outputs, at, queries, seed: Cropr(width, outputs, at, queries, seed=seed),
    "DynamicViT": lambda width, outputs, at, queries, seed: DynamicViT(width, at, seed=seed),
}
"""Methods by name."""

DENSE = "dense"


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a method and speed, the middle one first, and one for the control."""
    found: dict[str, Job] = {DENSE: partial(_control, "fashion", settings)}
    for speed in sorted(settings.speeds, key=lambda speed: abs(speed - 2)):
        for method in METHODS:
            found[f"{method}: {speed:g}x"] = partial(_method, "fashion", method, speed, False, settings)
    return found


def marked_jobs(settings: Settings) -> dict[str, Job]:
    """The same where one of several garments counts, and the others are clutter."""
    control: dict[str, Job] = {DENSE: partial(_control, "marked", settings)}
    return control | {f"{method}: 2x": partial(_method, "marked", method, 2.0, False, settings) for method in METHODS}


def segmentation_jobs(settings: Settings) -> dict[str, Job]:
    """The same where each pixel has a class; DynamicViT, which masks tokens in training, is made for class tokens."""
    control: dict[str, Job] = {DENSE: partial(_control, "segmentation", settings)}
    return control | {
        f"{method}: 1.5x": partial(_method, "segmentation", method, 1.5, True, settings)
        for method in METHODS
        if method != "DynamicViT"
    }


def head_loss(of: Subject, found: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of what a head makes of each image, or of each patch."""
    if labels.dim() > 1:
        patch: Any = of.network.config.patch_size  # type: ignore[union-attr]
        labels = patch_labels(labels, patch).flatten()
    return cross_entropy(found.flatten(0, -2), labels)


def plan(of: Subject, speed: float, fusion: bool) -> tuple[Counts, tuple[int, ...]]:
    """How many patches each layer is left with, and at which layers some go."""
    model = of.copied()
    at = tuple(range(len(layers(model)) - fusion))
    schedule = Target(1 / speed, at=at)
    reduced = ReducedModel(model, TokenNorm(), schedule, place=PLACE, last_layer_fusion=fusion)
    patches = _patches(of)
    counts = reduced.reduction.counts(patches)
    before = (patches, *counts[:-1])
    return Counts(counts), tuple(layer for layer, count in enumerate(counts) if count < before[layer])


def _patches(of: Subject) -> int:
    config: Any = of.network.config
    return (config.image_size // config.patch_size) ** 2


def built(of: Subject, method: str, speed: float, fusion: bool, seed: int) -> ReducedModel:
    """A copy of the dense network whose tokens go, before any training."""
    schedule, at = plan(of, speed, fusion)
    outputs, queries = len(of.training.classes), _patches(of) if fusion else 1
    pruner = METHODS[method](layers(of.network)[0].width, outputs, at, queries, seed)
    return ReducedModel(of.copied(), pruner, schedule, place=PLACE, last_layer_fusion=fusion).eval()


def finished(reduced: ReducedModel) -> ReducedModel:
    """The model as it is used after training: Cropr's merged queries in place of its heads."""
    how = reduced.reduction
    if not isinstance(reduced.pruner, Cropr):
        return reduced.eval()
    pruner, schedule, fusion = reduced.pruner.inference(), how.schedule, how.last_layer_fusion
    model = reduced.release()
    return ReducedModel(model, pruner, schedule, place=how.place, last_layer_fusion=fusion).eval()


def _control(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of, rows = subject(name, settings), []
    for number, seed in enumerate(settings.seeds):
        report(number / len(settings.seeds), f"{name}: dense, seed {seed}")
        tuned = of.trained(of.copied(), STEPS, seed, settings)
        rows.append({"method": DENSE, "seed": seed, "steps": STEPS, "accuracy_tuned": of.score(tuned)})
    facts = {"score": of.task.score_name, "accuracy": of.score(of.network)} | cost(of.network, of)
    return {"how": HOW, **facts, "rows": rows}


def _method(
    name: str, method: str, speed: float, fusion: bool, settings: Settings, report: Report, folder: Path
) -> dict[str, Any]:
    of, rows = subject(name, settings), []
    schedule, _ = plan(of, speed, fusion)
    for number, seed in enumerate(settings.seeds):
        report(number / len(settings.seeds), f"{name}: {method} at {speed:g}x, seed {seed}")
        reduced = built(of, method, speed, fusion, seed)
        facts: dict[str, Any] = {"method": method, "speed": speed, "seed": seed, "steps": STEPS}
        facts["accuracy"] = of.score(reduced)
        final = finished(trained(of, reduced, settings.recovery(STEPS), seed))
        facts |= {"accuracy_tuned": of.score(final)} | cost(final, of)
        if seed == settings.seeds[0]:
            facts |= measured_speed(of, final, built(of, "random", speed, fusion, seed), settings)
        rows.append(facts)
    return {"how": HOW, "score": of.task.score_name, "patches": list(schedule.patches), "rows": rows}


def trained(of: Subject, reduced: ReducedModel, options: FineTune, seed: int) -> ReducedModel:
    """The model after a training in which Cropr's heads or DynamicViT's predictors learn along. In place."""
    heads = HeadLosses(reduced, partial(head_loss, of))
    learns = isinstance(reduced.pruner, Cropr | DynamicViT)
    done: Any = of.fine_tuned(reduced, options, seed, [heads] if learns else [], heads if learns else None)
    return done


def measured_speed(of: Subject, ours: nn.Module, random: nn.Module, settings: Settings) -> dict[str, float]:
    """What a row says of how fast a model is, beside the dense one and random dropping."""
    batch = of.batch()
    times = settings.times({"dense": of.network, "ours": ours, "random": random}, batch)
    speeds = as_speed(times["ours"], times["dense"], len(batch))
    return speeds | {"throughput_of_random": times["random"]["cpu_ms"] / times["ours"]["cpu_ms"]}
