"""How good, how small and how fast is a pruned diffusion model, measured against the dense one on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion.scores import LatentSource
from diffusion.tally import Tally, known_of, restored
from diffusion.unfinished import UnfinishedSamples
from secateur.console import Report, silent
from secateur.evaluation.measurements import pack_answers
from secateur.metrics.distribution import (
    Distances,
    DistributionJudge,
    Interval,
    frechet_error,
    mean_interval,
    paired_interval,
)
from secateur.metrics.features.interface import check_images
from secateur.metrics.network import NetworkCost, measure_network
from secateur.metrics.timing_turn import timing_turn
from secateur.report.notebook import table_html
from secateur.report.record import Steps

PACKAGES = ("secateur", "torch", "diffusers", "transformers", "lightning", "torchmetrics", "numpy", "scipy")
DENSE = "dense"
"""What the model is called that the others stand for."""

_JACKKNIFE = 30
"""Samples that the standard error of a Frechet distance takes at least."""


class Classifier(Protocol):
    """Says what a picture shows."""

    @property
    def classes(self) -> Sequence[str]: ...

    def classify(self, images: Float[Tensor, "N C H W"]) -> Int64[Tensor, " N"]: ...


def pictures_of(latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """The pictures in [0, 1] of a model that works on pixels in [-1, 1]."""
    return (latents.float() / 2 + 0.5).clamp(0.0, 1.0)


@dataclass(frozen=True)
class PipelineSource:
    """The latents that a model makes in the place of a pipeline's network.

    Args:
        pipeline: `diffusion.pipeline.ClassToImage` or `TextToImage`.
        asked: the class or prompt of each seed.
        steps: time steps of the sampler.
        guidance: of classifier-free guidance; 1: none.
    """

    pipeline: Any
    asked: Mapping[int, Any]
    steps: int = 20
    guidance: float = 1.0

    def __call__(self, target: Any, seeds: Sequence[int], /) -> Float[Tensor, "seeds C H W"]:
        """The final latents of `target`, a diffusers network."""
        from diffusion.pipeline import sample_latents  # diffusers takes seconds to import

        noise = self.pipeline.noise(seeds).to(next(target.parameters()))
        conditions = self.pipeline.conditions([self.asked[seed] for seed in seeds])
        null = None if self.guidance == 1.0 else self.pipeline.null_conditions(len(seeds))
        how: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance, "null": null}
        return sample_latents(target, self.pipeline.scheduler, noise, seeds, conditions, **how)


@dataclass(frozen=True)
class Sampling:
    """Which samples every model makes.

    Args:
        sample: `sample(model, seeds)` makes the final latents; a seed's noise and prompt are the same for every model.
        seeds: one a sample, all different.
        labels: the class that each seed's condition asks for; None: unconditional, or conditions that are no classes.
        decode: latents -> pictures in [0, 1]; the autoencoder's decoder where there is one.
        batch_size: samples at a time.

    Raises:
        ValueError: no seeds, seeds that repeat, as many labels as there are not seeds, or no batch size.
    """

    sample: LatentSource
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None = None
    decode: Callable[[Tensor], Tensor] = pictures_of
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"an evaluation needs different seeds, at least one, got {len(self.seeds)} with repeats")
        if self.labels is not None and len(self.labels) != len(self.seeds):
            raise ValueError(f"{len(self.seeds)} seeds and {len(self.labels)} labels: each seed needs its own")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


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
    unfinished: UnfinishedSamples | None = None,
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
        unfinished: where finished samples are kept, so that a run that was stopped goes on; None: nowhere.

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
    tallies = {name: Tally(judges, shown) for name in models}
    with steps("sample"), torch.no_grad():
        done = 0 if unfinished is None else restored(unfinished, tallies)
        for start in range(done, len(sampling.seeds), sampling.batch_size):
            report(start / len(sampling.seeds), f"sampling: {start} of {len(sampling.seeds)} seeds")
            _sample_batch(models, tallies, sampling, start, classifier)
            if unfinished is not None:
                unfinished.keep(start + sampling.batch_size, lambda: known_of(tallies))
    with steps("judge"):
        report(1.0, "judging")
        quality = {
            name: _judged(tally, tallies[DENSE], judges, sampling, classifier, seed) for name, tally in tallies.items()
        }
    costs: dict[str, NetworkCost | None] = dict.fromkeys(models)
    if example_inputs is not None:
        with steps("time"), timing_turn():
            report(1.0, "timing")
            costs = {n: measure_network(m, example_inputs, repeats=repeats, threads=threads) for n, m in models.items()}
    reference, *others = (EvaluatedModel(name, costs[name], *quality[name]) for name in models)
    options: dict[str, object] = {
        "samples": len(sampling.seeds),
        "first_seed": sampling.seeds[0],
        "batch_size": sampling.batch_size,
        "conditional": sampling.labels is not None,
        "seed": seed,
    }
    record = Evaluation(reference, tuple(others), steps.seconds, options)
    return record, {name: torch.cat(tally.pictures) for name, tally in tallies.items() if tally.pictures}


def _sample_batch(
    models: Mapping[str, nn.Module],
    tallies: Mapping[str, Tally],
    sampling: Sampling,
    start: int,
    classifier: Classifier | None,
) -> None:
    seeds = sampling.seeds[start : start + sampling.batch_size]
    dense: tuple[Tensor, Tensor] | None = None
    for name, model in models.items():
        latents = _checked(sampling.sample(model, seeds), name, seeds, None if dense is None else dense[0])
        pictures = sampling.decode(latents)
        check_images(pictures)
        tallies[name].look(pictures)
        if classifier is not None and sampling.labels is not None:
            asked = torch.tensor(sampling.labels[start : start + len(seeds)])
            tallies[name].correct += (classifier.classify(pictures).cpu() == asked).tolist()
        if dense is None:
            dense = latents, pictures
        else:
            tallies[name].compare(latents, pictures, *dense)


def _checked(latents: Tensor, name: str, seeds: Sequence[int], dense: Tensor | None) -> Tensor:
    if len(latents) != len(seeds):
        raise ValueError(f"{name}: {len(latents)} latents for {len(seeds)} seeds")
    if dense is not None and latents.shape != dense.shape:
        raise ValueError(f"{name}: latents {tuple(latents.shape)}, the dense model's are {tuple(dense.shape)}")
    broken = int((~latents.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise ValueError(f"{name}: {broken} of {len(seeds)} latents are not finite, of seeds from {seeds[0]}")
    return latents


def _judged(
    tally: Tally,
    dense: Tally,
    judges: Sequence[DistributionJudge],
    sampling: Sampling,
    classifier: Classifier | None,
    seed: int,
) -> tuple[Paired | None, tuple[Distances, ...], ClassAccuracy | None, tuple[float | None, ...]]:
    paired = None if tally is dense else _paired(tally, seed)
    vectors = [torch.cat(batches) for batches in tally.vectors]
    distances = tuple(judge.distances(one, seed=seed) for judge, one in zip(judges, vectors, strict=True))
    errors = tuple(
        frechet_error(one, judge.moments, seed=seed) if len(one) >= _JACKKNIFE else None
        for judge, one in zip(judges, vectors, strict=True)
    )
    accuracy = None
    if classifier is not None and sampling.labels is not None:
        accuracy = _accuracy(tally, dense, sampling.labels, classifier.classes, seed)
    return paired, distances, accuracy, errors


def _paired(tally: Tally, seed: int) -> Paired:
    count = len(tally.latent_mse)
    return Paired(
        sum(tally.latent_mse) / count,
        tally.squared_error / tally.dense_squares if tally.dense_squares else math.nan,
        sum(tally.psnr) / count,
        sum(tally.ssim) / count if tally.ssim else None,
        _interval(tally.latent_mse, seed),
        _interval(tally.psnr, seed),
        _interval(tally.ssim, seed),
        tuple(tally.latent_mse),
        tuple(tally.psnr),
        tuple(tally.ssim) if tally.ssim else None,
    )


def _accuracy(tally: Tally, dense: Tally, labels: Sequence[int], names: Sequence[str], seed: int) -> ClassAccuracy:
    correct, before = ([float(right) for right in one.correct] for one in (tally, dense))
    asked = torch.tensor(labels)
    by_class = {names[label]: float(torch.tensor(correct)[asked == label].mean()) for label in sorted(set(labels))}
    change = None if tally is dense or len(correct) < 2 else paired_interval(correct, before, seed=seed)
    return ClassAccuracy(sum(correct) / len(correct), by_class, _interval(correct, seed), change, pack_answers(correct))


def _interval(values: Sequence[float], seed: int) -> Interval | None:
    finite = torch.tensor(values).isfinite().all()
    return mean_interval(values, seed=seed) if len(values) > 1 and finite else None
