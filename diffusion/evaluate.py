"""How good, how small and how fast is a pruned diffusion model, measured against the dense one on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.looking import Look
from diffusion.sampling import Classifier, Sampling
from secateur.console import Report, silent
from secateur.evaluation.chunks import ChunkStore, Rows
from secateur.evaluation.measurements import pack_answers
from secateur.metrics.distribution import (
    Distances,
    DistributionJudge,
    Interval,
    frechet_error,
    mean_interval,
    paired_interval,
)
from secateur.metrics.network import NetworkCost, measure_networks
from secateur.report.notebook import table_html
from secateur.report.record import Steps

PACKAGES = ("secateur", "torch", "diffusers", "transformers", "lightning", "torchmetrics", "numpy", "scipy")
DENSE = "dense"
"""What the model is called that the others stand for."""

_JACKKNIFE = 30
"""Samples that the standard error of a Frechet distance takes at least."""


@dataclass(frozen=True, slots=True)
class Paired:
    """How far a model's samples are from the dense model's on the same seeds.

    Args:
        mean_latent_mse: mean squared error of the final latents.
        relative_latent_error: squared error over the dense latents' squares, all together; unrelated ones come to
            about 2, NaN (null in JSON) where the dense latents are all zero.
        mean_psnr: of the pictures, in dB; infinite (null in JSON) where a pair is equal.
        mean_ssim: of the pictures; None where they are smaller than 11x11.
        latent_mse_interval: None where there is only one sample.
        psnr_interval: None where there is only one sample, or a pair is equal.
        ssim_interval: as the two above.
        latent_mse: of each sample.
        psnr: of each sample.
        ssim: of each sample.
    """

    mean_latent_mse: float
    relative_latent_error: float
    mean_psnr: float
    mean_ssim: float | None
    latent_mse_interval: Interval | None
    psnr_interval: Interval | None
    ssim_interval: Interval | None
    latent_mse: tuple[float, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """How often a sample shows, to a classifier, the class that was asked for.

    Args:
        mean: over samples.
        by_class: over the samples of each class that was asked for.
        interval: of the mean; None where there is only one sample.
        change: mean of the paired differences to the dense model, with its interval; None for the dense model itself.
        answers: which samples show it, as `secateur.evaluation.measurements.pack_answers` has it.
    """

    mean: float
    by_class: dict[str, float]
    interval: Interval | None
    change: Interval | None
    answers: str


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """One model.

    Args:
        name: of it.
        cost: None where no example inputs were given.
        paired: against the dense model; None for the dense model itself.
        distances: from real pictures, one a feature network.
        accuracy: None without labels or a classifier.
        frechet_errors: standard error of each Frechet distance; None where there are too few samples to tell.
    """

    name: str
    cost: NetworkCost | None
    paired: Paired | None
    distances: tuple[Distances, ...]
    accuracy: ClassAccuracy | None
    frechet_errors: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Models compared with the one that they stand for.

    Args:
        reference: the dense model.
        candidates: what was compared with it.
        seconds: time by step.
        options: how the samples were made.
    """

    reference: EvaluatedModel
    candidates: tuple[EvaluatedModel, ...]
    seconds: dict[str, float]
    options: dict[str, object]

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        from diffusion.tables import evaluation_table  # which names this class

        return table_html(evaluation_table(self))


def evaluate(
    dense: nn.Module,
    candidates: Mapping[str, nn.Module],
    sampling: Sampling,
    *,
    judges: Sequence[DistributionJudge] = (),
    classifier: Classifier | None = None,
    example_inputs: object = None,
    repeats: int = 5,
    threads: int | None = None,
    shown: int = 16,
    seed: int = 0,
    report: Report = silent,
    store: ChunkStore | None = None,
    identity: Any = None,
) -> tuple[Evaluation, dict[str, Float[Tensor, "K C H W"]]]:
    """Sample all models on the same seeds, a batch at a time, and measure them.

    What grows with the number of samples is a few numbers each and their feature vectors; pictures are let go.

    Args:
        dense: the model that the others stand for.
        candidates: the others by name.
        sampling: the samples.
        judges: hold real pictures against the samples, one a feature network.
        classifier: tells the classes of samples where `sampling` has labels.
        example_inputs: arguments of one forward of a model, by which it is counted and timed; None: that is left out.
        repeats: timed forwards.
        threads: that torch may use while it is timed; None: as many as it uses now.
        shown: how many pictures of each model to return.
        seed: of intervals, subsets and floors; samples have their own.
        report: told how far it is.
        store: where what is known of finished samples is kept, so that a run that was stopped goes on; None: nowhere.
        identity: all that the samples depend on, as plain values: weights, how they are drawn, what judges them.

    Returns:
        the record, and the first pictures of each model by name ("dense" and the candidates').

    Raises:
        ValueError: a candidate is called "dense"; a model gives another number of latents than seeds, latents of
            another shape than the dense model's, or ones that are not finite (says how many); a distance has fewer than
            4 samples.
    """
    if DENSE in candidates:
        raise ValueError(f"{DENSE!r} is the reference: call the candidate otherwise")
    steps = Steps()
    models = {DENSE: dense, **candidates}
    with steps("sample"):
        rows = Look(models, sampling, judges, classifier).gathered(shown, store or ChunkStore(), identity, report)
    with steps("judge"):
        report(1.0, "judging")
        quality = {name: _judged(rows, index, judges, sampling, classifier, seed) for index, name in enumerate(models)}
    costs: dict[str, NetworkCost | None] = dict.fromkeys(models)
    if example_inputs is not None:
        with steps("time"):
            report(1.0, "timing")
            costs.update(measure_networks(models, example_inputs, repeats=repeats, threads=threads))
    reference, *others = (EvaluatedModel(name, costs[name], *quality[name]) for name in models)
    options: dict[str, object] = {
        "samples": len(sampling.seeds),
        "first_seed": sampling.seeds[0],
        "batch_size": sampling.batch_size,
        "conditional": sampling.labels is not None,
        "seed": seed,
    }
    record = Evaluation(reference, tuple(others), steps.seconds, options)
    return record, {name: rows[f"{index}/pictures"] for index, name in enumerate(models) if shown}


def _judged(
    rows: Rows,
    index: int,
    judges: Sequence[DistributionJudge],
    sampling: Sampling,
    classifier: Classifier | None,
    seed: int,
) -> tuple[Paired | None, tuple[Distances, ...], ClassAccuracy | None, tuple[float | None, ...]]:
    """What the rows of the model at a place come to."""
    vectors = [rows[f"{index}/vectors/{place}"] for place in range(len(judges))]
    distances = tuple(judge.distances(one, seed=seed) for judge, one in zip(judges, vectors, strict=True))
    errors = tuple(
        frechet_error(one, judge.moments, seed=seed) if len(one) >= _JACKKNIFE else None
        for judge, one in zip(judges, vectors, strict=True)
    )
    accuracy = None
    if classifier is not None and sampling.labels is not None:
        accuracy = _accuracy(rows, index, sampling.labels, classifier.classes, seed)
    return _paired(rows, index, seed) if index else None, distances, accuracy, errors


def _paired(rows: Rows, index: int, seed: int) -> Paired:
    errors, decibels = rows[f"{index}/latent_mse"].tolist(), rows[f"{index}/psnr"].tolist()
    similar = rows[f"{index}/ssim"].tolist() if f"{index}/ssim" in rows else []
    squares, count = float(rows["0/latent_square"].sum()), len(errors)
    return Paired(
        sum(errors) / count,
        sum(errors) / squares if squares else math.nan,
        sum(decibels) / count,
        sum(similar) / count if similar else None,
        _interval(errors, seed),
        _interval(decibels, seed),
        _interval(similar, seed),
        tuple(errors),
        tuple(decibels),
        tuple(similar) if similar else None,
    )


def _accuracy(rows: Rows, index: int, labels: Sequence[int], names: Sequence[str], seed: int) -> ClassAccuracy:
    correct, before = (rows[f"{place}/correct"].tolist() for place in (index, 0))
    asked = torch.tensor(labels)
    by_class = {names[label]: float(torch.tensor(correct)[asked == label].mean()) for label in sorted(set(labels))}
    change = paired_interval(correct, before, seed=seed) if index and len(correct) > 1 else None
    return ClassAccuracy(sum(correct) / len(correct), by_class, _interval(correct, seed), change, pack_answers(correct))


def _interval(values: Sequence[float], seed: int) -> Interval | None:
    finite = torch.tensor(values).isfinite().all()
    return mean_interval(values, seed=seed) if len(values) > 1 and finite else None
