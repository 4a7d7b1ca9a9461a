"""How good, how small and how fast pruned vision transformers are, against the dense one on the same images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from secateur.console import Report, silent, stretch
from secateur.evaluation.chunks import CHUNK, ChunkStore, Gathering, Rows
from secateur.evaluation.measurements import pack_answers
from secateur.metrics.distribution.bootstrap import mean_interval, paired_interval
from secateur.metrics.interval import Interval
from secateur.metrics.network import NetworkCost, measure_networks
from secateur.report.notebook import table_html
from secateur.report.record import Steps
from secateur.training.weights import evaluating
from vit.alignment import embedding_of
from vit.data import Images, Item, LabelledImages, held
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
        images_sha256: of their pixels and labels.
        seconds: time by step.
    """

    reference: EvaluatedModel
    candidates: tuple[EvaluatedModel, ...]
    classes: tuple[str, ...]
    images: int
    images_sha256: str
    seconds: dict[str, float]

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        from vit.tables import evaluation_table  # which names this class

        return table_html(evaluation_table(self))


def evaluate(
    dense: nn.Module,
    candidates: Mapping[str, nn.Module],
    images: Images,
    *,
    batch_size: int = 32,
    threads: int | None = 1,
    repeats: int = 5,
    shown: int = 6,
    report: Report = silent,
    store: ChunkStore | None = None,
    identity: Any = None,
) -> tuple[Evaluation, Pictures]:
    """Run all models on the same images, a batch at a time, and time them.

    Images are let go when all models have seen them: what grows with their number is two numbers a model.

    Args:
        dense: the model that the others stand for.
        candidates: the others by name.
        images: to judge by, in memory, or decoded from a folder as they are needed.
        batch_size: images at a time, also while the models are timed.
        threads: that torch may use while they are; None: as many as it uses now.
        repeats: timed forwards of each.
        shown: images whose tokens are drawn.
        report: told how far it is.
        store: where answers are kept, so that a run that was stopped goes on; None: nowhere.
        identity: all that the answers depend on besides the number of models: weights, images, as plain values.

    Returns:
        the record, and pictures of tokens.

    Raises:
        FileNotFoundError: an image is gone.
        ValueError: there are no images, or one cannot be read; a candidate is called "dense"; a model gives outputs of
            another shape than the dense one's, or ones that are not finite.
    """
    if DENSE in candidates:
        raise ValueError(f"{DENSE!r} is the reference: call the candidate otherwise")
    if not len(images):
        raise ValueError("there are no images to judge by")
    models = {DENSE: dense, **candidates}
    classes = has_classes(dense)
    steps = Steps()
    pictures: Pictures = {}
    with steps("run"):
        gathering = Gathering(
            "images",
            [identity, batch_size],
            images,
            partial(_look, models, images, batch_size, classes),
            chunk=batch_size * max(1, CHUNK // batch_size),
        )
        rows = (store or ChunkStore()).gather(gathering, stretch(report, 0.0, 0.6))
        first = held([images[index] for index in range(min(len(images), max(shown, batch_size)))], images)
        for name, model in models.items():
            drawn = draw_tokens(model, first.subset(slice(shown)))
            if drawn:
                pictures[name] = drawn
    with steps("time"):
        batch = {"pixel_values": _batch(first, batch_size).to(_device(dense))}
        costs = measure_networks(models, batch, repeats=repeats, threads=threads, report=stretch(report, 0.6, 1.0))
    answers = [Answers.from_rows(rows, index) for index in range(len(models))] if classes else []
    judged = [
        EvaluatedModel(
            name,
            cost,
            1000.0 * cost.batch_size / cost.latency.minimum_ms,
            classified(answers[index], answers[0], images.labels, images.classes) if classes else None,
            None if classes else _relative_error(rows, index),
        )
        for index, (name, cost) in enumerate(costs.items())
    ]
    reference, *others = judged
    digest = hashlib.sha256(rows["sha256"].numpy().data)
    digest.update(images.labels.contiguous().numpy().data)
    found = Evaluation(reference, tuple(others), images.classes, len(images), digest.hexdigest(), steps.seconds)
    return found, pictures


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of each image.

    Args:
        choices: its first choice.
        losses: its cross-entropy, in nats.
    """

    choices: Int64[Tensor, " N"]
    losses: Float[Tensor, " N"]

    @classmethod
    def from_logits(cls, logits: Float[Tensor, "N classes"], labels: Int64[Tensor, " N"]) -> Self:
        """What logits come to."""
        return cls(logits.argmax(1), functional.cross_entropy(logits, labels, reduction="none"))

    @classmethod
    def from_rows(cls, rows: Rows, index: int) -> Self:
        """What was kept of the model at this place."""
        return cls(rows[f"{index}/choices"], rows[f"{index}/losses"])


def classified(answers: Answers, dense: Answers, labels: Int64[Tensor, " N"], classes: Sequence[str]) -> Classified:
    """How a model that gives these answers classifies the images, beside the dense model, which gives those."""
    count, choices, losses = len(classes), answers.choices, answers.losses
    right, before = (choices == labels).double(), (dense.choices == labels).double()
    difference = right - before
    agreeing = (choices == dense.choices).double()
    by_class = {
        name: float(right[labels == index].mean())
        for index, name in enumerate(classes)
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
        paired_interval(right, before) if len(right) > 1 and answers is not dense else None,
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


def _look(
    models: Mapping[str, nn.Module],
    images: Images,
    batch_size: int,
    classes: bool,
    items: Iterator[Item],
) -> Rows:
    """What is kept of images: a hash of each, and of each model its choice and loss, or its squared error.

    Args:
        models: by name, the dense one first.
        images: what they are from.
        batch_size: images at a time.
        classes: whether the models have classes.
        items: some of the images, one after another.
    """
    batches: list[Rows] = []
    while batch := list(islice(items, batch_size)):
        seen = held(batch, images)
        pixels, rows, dense = seen.pixel_values(), {"sha256": _hashes(seen)}, None
        for index, (name, model) in enumerate(models.items()):
            with evaluating(model):
                outputs = embedding_of(model(pixels.to(_device(model)))).float().cpu()
            _check(outputs, name, dense)
            dense = outputs if dense is None else dense
            if classes:
                answers = Answers.from_logits(outputs, seen.labels)
                rows |= {f"{index}/choices": answers.choices, f"{index}/losses": answers.losses}
            else:
                rows[f"{index}/errors"] = _squares(outputs.double() - dense.double())
                rows.setdefault("squares", _squares(dense.double()))
        batches.append(rows)
    return {name: torch.cat([rows[name] for rows in batches]) for name in batches[0]}


def _hashes(images: LabelledImages) -> UInt8[Tensor, "N 32"]:
    """SHA-256 of each image's pixels."""
    digests = b"".join(hashlib.sha256(one.contiguous().numpy().data).digest() for one in images.images)
    return torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, 32)


def _squares(values: Float[Tensor, "N ..."]) -> Float[Tensor, " N"]:
    return values.square().flatten(1).sum(dim=1)


def _check(outputs: Tensor, name: str, dense: Tensor | None) -> None:
    if dense is not None and outputs.shape != dense.shape:
        raise ValueError(f"{name} gives outputs {tuple(outputs.shape)}, the dense model gives {tuple(dense.shape)}")
    broken = int((~outputs.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise ValueError(f"{name}: outputs of {broken} of {len(outputs)} images are not finite")


def _relative_error(rows: Rows, index: int) -> float:
    squares = float(rows["squares"].sum())
    return float(rows[f"{index}/errors"].sum()) / squares if squares else math.nan


def _standard_error(values: Float[Tensor, " N"]) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _batch(images: LabelledImages, batch_size: int) -> Float[Tensor, "batch C H W"]:
    """The first images, again and again where there are too few."""
    indices: Int64[Tensor, " batch"] = torch.arange(batch_size) % len(images)
    return images.pixel_values(indices)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
