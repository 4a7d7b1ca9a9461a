"""How good, how small and how fast pruned vision transformers are, against the dense one on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from secateur.console import Report, silent
from secateur.evaluation.measurements import pack_answers
from secateur.metrics.distribution.bootstrap import mean_interval, paired_interval
from secateur.metrics.interval import Interval
from secateur.metrics.network import NetworkCost, measure_network
from secateur.metrics.speed import Speed
from secateur.metrics.timing_turn import timing_turn
from secateur.report.notebook import table_html
from secateur.report.record import Machine, Steps, describe_machine, package_versions
from secateur.surgery.cost import measure_latency
from secateur.training.weights import evaluating
from vit.alignment import embedding_of
from vit.data import LabelledImages
from vit.pruned import patch_grid
from vit.sources import has_classes
from vit.tokens.pictures import draw_kept, kept_by_layer
from vit.tokens.reduced_model import ReducedModel

PACKAGES = ("secateur", "torch", "transformers", "lightning", "numpy")
DENSE = "dense"
"""What the model is called that the others stand for."""

Pictures = dict[str, list[NDArray[np.uint8]]]
"""Name of a model -> strips of images, each with what the layers see of it; of models whose tokens go."""


@dataclass(frozen=True, slots=True)
class Classified:
    """How a model classifies.

    Args:
        accuracy: share of the images that are classified right.
        accuracy_error: standard error of it.
        change: accuracy minus the dense model's; 0 for the dense model itself.
        change_error: standard error of it, over pairs of answers to the same image.
        agreement: share of the images on which the first choice is the dense model's.
        loss: mean cross-entropy, in nats.
        by_class: class -> share of its images that are classified right.
        confusion: images by true class, then by first choice.
        agreement_error: standard error of the agreement.
        loss_error: standard error of the loss.
        interval: bootstrap interval of the accuracy; None where there is only one image.
        change_interval: paired bootstrap interval of the change; None for the dense model itself, and where there is
            only one image.
        answers: which images are classified right, as `secateur.evaluation.measurements.pack_answers` has it.
    """

    accuracy: float
    accuracy_error: float
    change: float
    change_error: float
    agreement: float
    loss: float
    by_class: dict[str, float]
    confusion: tuple[tuple[int, ...], ...]
    agreement_error: float
    loss_error: float
    interval: Interval | None
    change_interval: Interval | None
    answers: str


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """One model.

    Args:
        name: of it.
        cost: parameters, bytes, multiply-adds (attention counted) and time of a batch.
        images_per_second: from the fastest forward; models take turns, so that other work on the machine hits all.
        classified: None for models without classes.
        embedding_error: squared error of what the model gives over the dense one's squares; None for models of classes,
            0 for the dense model itself.
    """

    name: str
    cost: NetworkCost
    images_per_second: float
    classified: Classified | None
    embedding_error: float | None

    @property
    def macs(self) -> int:
        """Multiply-adds of one image."""
        return round(self.cost.macs / self.cost.batch_size)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Models compared with the one that they stand for.

    Args:
        reference: the dense model.
        candidates: what was compared with it.
        classes: their names.
        images: how many it was measured on.
        seconds: time by step.
        machine: where the speeds were measured.
        versions: of the packages that matter.
    """

    reference: EvaluatedModel
    candidates: tuple[EvaluatedModel, ...]
    classes: tuple[str, ...]
    images: int
    seconds: dict[str, float]
    machine: Machine
    versions: dict[str, str]

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        from vit.tables import evaluation_table  # which names this class

        return table_html(evaluation_table(self))


def evaluate(
    dense: nn.Module,
    candidates: Mapping[str, nn.Module],
    images: LabelledImages,
    *,
    batch_size: int = 32,
    threads: int | None = 1,
    repeats: int = 5,
    shown: int = 6,
    report: Report = silent,
) -> tuple[Evaluation, Pictures]:
    """Run all models on the same images, and time them.

    Args:
        dense: the model that the others stand for.
        candidates: the others by name.
        images: to judge by.
        batch_size: images at a time, also while the models are timed.
        threads: that torch may use while they are; None: as many as it uses now.
        repeats: timed forwards of each.
        shown: images whose tokens are drawn.
        report: told how far it is.

    Returns:
        the record, and pictures of tokens.

    Raises:
        ValueError: there are no images, a candidate is called "dense", or a model gives outputs of another shape than
            the dense one's, or ones that are not finite.
    """
    if DENSE in candidates:
        raise ValueError(f"{DENSE!r} is the reference: call the candidate otherwise")
    if not len(images):
        raise ValueError("there are no images to judge by")
    models = {DENSE: dense, **candidates}
    classes = has_classes(dense)
    steps = Steps()
    found: dict[str, Tensor] = {}
    pictures: Pictures = {}
    with steps("run"):
        for index, (name, model) in enumerate(models.items()):
            report(0.6 * index / len(models), f"running: {name}")
            found[name] = _checked(_outputs(model, images, batch_size), name, found.get(DENSE))
            drawn = draw_tokens(model, images.subset(slice(shown)))
            if drawn:
                pictures[name] = drawn
    with steps("time"), timing_turn():
        costs = {}
        times: dict[str, list[float]] = {name: [] for name in models}
        batch = {"pixel_values": _batch(images, batch_size).to(_device(dense))}
        for name, model in models.items():
            costs[name] = measure_network(model, batch, repeats=1, threads=threads)
        for done in range(repeats):
            report(0.6 + 0.4 * done / repeats, "timing")
            for name, model in models.items():
                times[name] += measure_latency(model, batch, repeats=1, threads=threads).times_ms
    judged = []
    for name, outputs in found.items():
        cost = _with_times(costs[name], times[name])
        rate = 1000.0 * cost.batch_size / min(times[name])
        answers = classified(outputs, found[DENSE], images) if classes else None
        error = None if classes else _relative_error(outputs, found[DENSE])
        judged.append(EvaluatedModel(name, cost, rate, answers, error))
    machine, versions = describe_machine(), package_versions(*PACKAGES)
    reference, *others = judged
    return (
        Evaluation(reference, tuple(others), images.classes, len(images), steps.seconds, machine, versions),
        pictures,
    )


def classified(
    logits: Float[Tensor, "N classes"], dense: Float[Tensor, "N classes"], images: LabelledImages
) -> Classified:
    """How these logits classify the images, beside those of the dense model."""
    labels, count = images.labels, len(images.classes)
    choices = logits.argmax(1)
    right, before = (choices == labels).double(), (dense.argmax(1) == labels).double()
    difference = right - before
    agreeing = (choices == dense.argmax(1)).double()
    losses = functional.cross_entropy(logits, labels, reduction="none")
    by_class = {
        name: float(right[labels == index].mean())
        for index, name in enumerate(images.classes)
        if bool((labels == index).any())
    }
    confusion = torch.bincount(labels * count + choices, minlength=count * count).view(count, count)
    return Classified(
        float(right.mean()),
        _standard_error(right),
        float(difference.mean()),
        _standard_error(difference),
        float(agreeing.mean()),
        float(losses.mean()),
        by_class,
        tuple(map(tuple, confusion.tolist())),
        _standard_error(agreeing),
        _standard_error(losses.double()),
        mean_interval(right) if len(right) > 1 else None,
        paired_interval(right, before) if len(right) > 1 and logits is not dense else None,
        pack_answers(right.tolist()),
    )


@torch.no_grad()
def draw_tokens(model: nn.Module, images: LabelledImages) -> list[NDArray[np.uint8]]:
    """A strip for each image, with what each layer sees of it; none where all tokens stay."""
    if not isinstance(model, ReducedModel) or not len(images):
        return []
    with evaluating(model):
        model(images.pixel_values().to(_device(model)))
    if not model.reduction.reductions:
        return []
    layers, grid = kept_by_layer(model.reduction), patch_grid(model.model)
    strips = []
    for index, image in enumerate(images.images):
        shown = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        strips.append(np.asarray(draw_kept(shown, [layer[index] for layer in layers], grid)))
    return strips


def _outputs(model: nn.Module, images: LabelledImages, batch_size: int) -> Tensor:
    """(N, ...) what the model gives for all images, on the CPU."""
    parts = []
    with evaluating(model), torch.no_grad():
        for batch in images.in_order(batch_size):
            parts.append(embedding_of(model(batch["pixel_values"].to(_device(model)))).float().cpu())
    return torch.cat(parts)


def _checked(outputs: Tensor, name: str, dense: Tensor | None) -> Tensor:
    if dense is not None and outputs.shape != dense.shape:
        raise ValueError(f"{name} gives outputs {tuple(outputs.shape)}, the dense model gives {tuple(dense.shape)}")
    broken = int((~outputs.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise ValueError(f"{name}: outputs of {broken} of {len(outputs)} images are not finite")
    return outputs


def _with_times(cost: NetworkCost, times_ms: Sequence[float]) -> NetworkCost:
    """The cost with the times that were taken in turns."""
    found = cost.latency
    latency = Speed.of(
        times_ms,
        frames=found.frames,
        threads=found.threads,
        load_average=found.load_average,
        first_call_ms=found.first_call_ms,
        clock=found.clock,
    )
    return replace(cost, latency=latency)


def _relative_error(outputs: Tensor, dense: Tensor) -> float:
    squares = float(dense.double().square().sum())
    return float((outputs.double() - dense.double()).square().sum()) / squares if squares else math.nan


def _standard_error(values: Float[Tensor, " N"]) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _batch(images: LabelledImages, batch_size: int) -> Float[Tensor, "batch C H W"]:
    """The first images, again and again where there are too few."""
    indices: Int64[Tensor, " batch"] = torch.arange(batch_size) % len(images)
    return images.pixel_values(indices)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
