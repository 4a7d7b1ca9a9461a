"""Training of what is left, by a recipe."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from diffusion.block_removal import Student
from diffusion.conditions import LatentBatches
from diffusion.data import SampleConditions, Samples, to_device
from diffusion.recipe import Recovery
from diffusion.train import (
    DenoisingTask,
    DiffusionDistillation,
    DiffusionTraining,
    block_features,
)
from secateur.console import Report, silent
from secateur.recovery.distill import OutputError, Term
from secateur.recovery.lora import Lora, Perp
from secateur.training import FitRecord, cosine, fit
from secateur.training.rates import Rates

_HELD_OUT = 0.1


def recover(
    small: nn.Module,
    dense: nn.Module,
    samples: Samples,
    task: DenoisingTask,
    options: Recovery,
    *,
    student: Student | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    report: Report = silent,
) -> FitRecord:
    """Train `small` in place.

    Args:
        small: the pruned network.
        dense: what it was cut from; it teaches.
        samples: clean latents.
        task: the noise, and the loss on the data.
        options: the recipe's.
        student: `small`, where it was made by removing blocks: it knows which of the teacher's blocks are its own.
        checkpoint: where the training is kept, and goes on from.
        seed: of batches, noise and time steps.
        report: told how far it is.

    Raises:
        ValueError: there are no samples left to train on, or the loss is not finite.
    """
    dtype = next(small.parameters()).dtype
    held = round(len(samples) * _HELD_OUT) if options.validate_every is not None else 0
    if len(samples) - held < 1 or (options.validate_every is not None and not held):
        raise ValueError(f"{len(samples)} samples are too few to train on and to validate on: give more data")
    train, test = samples.rows(torch.arange(held, len(samples))), samples.rows(torch.arange(held))
    batches = _batches(train, min(options.micro_batch, len(train)), options.drop, dtype, seed)
    held_out = [_on(_batches(test, len(test), 0.0, dtype, seed).batch_at(0), small)] if held else []
    prepared = None
    if options.adapters is not None:
        adapters = Lora(rank=options.adapters.rank, alpha=options.adapters.alpha)
        prepared = Perp(adapters).prepare(small)
    else:
        small.requires_grad_(True)
    module: DiffusionTraining | DiffusionDistillation
    common = {"rate": options.rate, "weight_decay": options.weight_decay}
    schedule = _schedule(options)
    if options.distil is None:
        module = DiffusionTraining(small, task, schedule=schedule, held_out=held_out, **common)
    else:
        module = DiffusionDistillation(
            small,
            dense if student is None else student.teacher(dense),
            _terms(small, options, student),
            _on(batches.batch_at(0), small),
            task,
            task_weight=options.distil.task,
            schedule=schedule,
            held_out=held_out,
            **common,
        )
    record = fit(
        module,
        batches,
        steps=options.steps,
        accumulate=options.accumulate,
        seed=seed,
        ema=options.ema,
        clip_norm=options.clip_norm,
        validate_every=options.validate_every,
        checkpoint=checkpoint,
        resume=True,
        report=report,
    )
    if prepared is not None:
        prepared.merge()
    small.eval()
    return record


def _batches(samples: Samples, batch_size: int, drop: float, dtype: torch.dtype, seed: int) -> LatentBatches:
    return LatentBatches(samples.latents.to(dtype), SampleConditions(samples, drop), batch_size, seed)


def _terms(small: nn.Module, options: Recovery, student: Student | None) -> list[Term]:
    assert options.distil is not None
    weight = options.distil.blocks
    terms: list[Term] = [OutputError(options.distil.outputs)] if options.distil.outputs else []
    if weight:
        terms.append(block_features(small, weight) if student is None else student.features(weight))
    return terms


def _schedule(options: Recovery) -> Rates:
    if not options.constant:
        return cosine(min(options.warmup, options.steps - 1), options.steps)
    return lambda step: min(1.0, (step + 1) / (options.warmup + 1))


def _on(batch: dict[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    return to_device(batch, next(module.parameters()).device)
