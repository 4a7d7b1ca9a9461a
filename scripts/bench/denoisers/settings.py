"""What a run of the bench of diffusion models measures, and how models are recovered and judged."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from denoisers.subjects import Subject
from diffusion.evaluate import EvaluatedModel, evaluate
from diffusion.noising import Noising
from diffusion.train import DenoisingTask, DiffusionDistillation
from secateur.metrics.memory import measure_peak_memory
from secateur.recovery.distill import OutputError, Term
from secateur.surgery.cost import count_macs, count_params, run_example
from secateur.training import cosine, fit

LATENCY_BATCH = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of a run.

    Args:
        models: names in `SUBJECTS`.
        quick: fewest samples, steps, seeds and shares: shows that all runs, its figures mean nothing.
    """

    models: tuple[str, ...]
    quick: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each draws other calibration data, other samples, and another order in recovery."""
        return (0,) if self.quick else (0, 1, 2)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the dense model's multiply-adds that go."""
        return (0.3,) if self.quick else (0.1, 0.2, 0.3, 0.5)

    @property
    def recovery_steps(self) -> int:
        return 2 if self.quick else 100

    @property
    def ecodiff_steps(self) -> int:
        return 2 if self.quick else 150

    @property
    def trajectories(self) -> int:
        """That EcoDiff and repair look along."""
        return 8 if self.quick else 64

    @property
    def latents(self) -> int:
        """That LD-Pruner compares without each operator."""
        return 4 if self.quick else 64

    @property
    def pictures(self) -> int:
        """That losses are measured on, at each time step."""
        return 8 if self.quick else 128

    @property
    def timesteps(self) -> int:
        return 2 if self.quick else 10

    def samples(self, subject: Subject) -> int:
        return 20 if self.quick else subject.data.samples

    def steps(self, subject: Subject) -> int:
        """Of the sampler, in judging as in calibration."""
        return 2 if self.quick else subject.data.steps

    def recovered(
        self, subject: Subject, pruned: nn.Module, seed: int, terms: Sequence[Term] = (), times: int = 1
    ) -> nn.Module:
        """A copy of the pruned model after the short training that is the same for all: on data and the dense model's
        outputs, with further `terms` where a method has its own, and `times` as many steps."""
        steps = self.recovery_steps * times
        student, batches = copy.deepcopy(pruned).eval(), subject.batches(seed, 64)
        module = DiffusionDistillation(
            student,
            subject.dense,
            [OutputError(), *terms],
            batches.batch_at(0),
            DenoisingTask(Noising.of(subject.pipeline.scheduler)),
            rate=5e-4,
            schedule=cosine(steps // 10, steps),
        )
        fit(module, batches, steps=steps, seed=seed, clip_norm=1.0)
        return student

    def judged(
        self, subject: Subject, models: Mapping[str, nn.Module], seed: int, sample: Callable[..., Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Quality of the dense model, and of each of the others by name, on the same seeds."""
        sampling = subject.sampling(seed, self.samples(subject), self.steps(subject))
        sampling = replace(
            sampling, sample=subject.once(sampling.sample) if sample is None else sample(sampling.sample)
        )
        judges = [subject.judge]
        record, _ = evaluate(
            subject.dense, models, sampling, judges=judges, classifier=subject.features, shown=0, seed=seed
        )
        return quality(record.reference), {each.name: quality(each) for each in record.candidates}

    def cost(self, subject: Subject, model: nn.Module) -> dict[str, Any]:
        """Parameters, multiply-adds of one sample, and what a forward of 8 samples takes, beside the dense model's."""
        inputs = subject.inputs(LATENCY_BATCH)
        with torch.no_grad():
            peak = measure_peak_memory(lambda: run_example(model, inputs), torch.device("cpu"))
        return {
            "params": count_params(model),
            "macs": count_macs(model, subject.inputs()),
            "peak_tensor_bytes": peak.bytes,
            **self.latencies(lambda: run_example(model, inputs), lambda: run_example(subject.dense, inputs)),
        }

    def latencies(self, ours: Callable[[], Any], dense: Callable[[], Any]) -> dict[str, float]:
        """Milliseconds of both, the least of several, taking turns so that what disturbs one disturbs the other.

        They are of the thread's processor time, which other work on the machine does not count into; on an idle
        machine wall time is the same.
        """
        times: dict[str, list[float]] = {"latency_ms": [], "dense_latency_ms": []}
        with torch.no_grad():
            for repeat in range(2 if self.quick else 13):
                for name, run in (("latency_ms", ours), ("dense_latency_ms", dense)):
                    start = time.thread_time()
                    run()
                    if repeat:
                        times[name].append((time.thread_time() - start) * 1000)
        least = {name: min(each) for name, each in times.items()}
        return least | {"speedup": least["dense_latency_ms"] / least["latency_ms"]}


def quality(model: EvaluatedModel) -> dict[str, Any]:
    """The figures of a row."""
    (distances,), accuracy = model.distances, model.accuracy
    assert accuracy is not None
    return {
        "distance": distances.name,
        "frechet": distances.frechet,
        "floor": distances.floor,
        "kid": distances.kid.mean,
        "accuracy": accuracy.mean,
        "latent_error": model.paired.relative_latent_error if model.paired else 0.0,
    }
