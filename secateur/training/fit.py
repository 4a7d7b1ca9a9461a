"""One fit for every loop of the suite: so many steps, the best weights at the end, resumable at any step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader, Dataset

from secateur.console import Report, silent
from secateur.interrupts import naming_what_was_written
from secateur.logs import only_errors
from secateur.training.batches import Batches
from secateur.training.checkpoints import RUN, BetweenSteps, PlainFiles, Stopped, canonical, read, write
from secateur.training.ema import Ema
from secateur.training.history import FitRecord, History
from secateur.training.seeding import seeded
from secateur.training.stopping import signals_put_back
from secateur.training.validation import KeepBest, Validated
from secateur.training.weights import fit_shapes, restore, snapshot

SAMPLES = 100
"""Entries of a loss curve, about."""

FINISHED = "finished"
"""The entry of a checkpoint's `RUN` that holds the record of a run that has ended."""


def fit(
    module: lightning.LightningModule,
    batches: Batches,
    *,
    steps: int,
    accumulate: int = 1,
    seed: int = 0,
    ema: float | None = None,
    clip_norm: float | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    callbacks: Sequence[lightning.Callback] = (),
    workers: int = 0,
    report: Report = silent,
) -> FitRecord:
    """Train `module` in place for `steps` calls of its `training_step`, on the device where it is, and on that alone:
    for several devices give the module to a trainer of Lightning.

    A step is a batch, however many optimisers the module steps by hand in it. `training_step(batch, step)` returns the
    loss, under manual optimisation, too; learning-rate schedulers that Lightning drives advance by steps. In each batch
    torch's global generators start from a state of their own (dropout draws from them), and in the end they are put
    back: the same seed gives the same weights, and a resumed run those of the uninterrupted one, bit for bit on a CPU.
    State of the module's own goes through `on_save_checkpoint` and `on_load_checkpoint`; parameters and buffers may
    change their shapes on the way, but not their names. Submodules train in the mode, training or evaluation, in which
    they come.

    Args:
        module: its `state_dict` is what is kept and saved: a frozen teacher is better held outside of it.
        batches: the data by step.
        steps: how many; 0 leaves the module as it is.
        accumulate: batches of a step, one after another: step s has those of numbers s * accumulate and on, and their
            gradients are averaged. For a loss that is a mean over samples that is one large batch, in the memory of a
            small one. `training_step` and callbacks are told the number of the batch; all else here counts steps.
        seed: of what the steps draw from torch's global generators, at least 0; `batches` has its own.
        ema: decay of an average of the weights that is validated, and kept at the end, instead of the weights.
        clip_norm: greatest norm of the gradient; with manual optimisation the module clips.
        validate_every: steps between calls of `validation_score` (the module must be `Validated`); the first is made
            before the first step, the last after the last, and the module ends with the weights that scored best, so
            never with worse ones than at the start.
        patience: validations without improvement after which the fit ends; None: it does all its steps.
        min_delta: the least gain in score that counts as an improvement for `patience`.
        checkpoint: file that is written as the fit goes, when it is stopped by Ctrl-C or SIGTERM, and at the end.
        checkpoint_seconds: time between checkpoints; 0: one each step.
        resume: go on from `checkpoint` if there is one.
        identity: settings that a checkpoint must agree with to be resumed: plain values by name.
        callbacks: further ones, called before the fit's own; they save their state by `state_dict`.
        workers: processes that make batches ahead of time.
        report: told the share of steps done, with loss and score.

    Raises:
        ValueError: an option is out of range; the loss is not finite; the checkpoint is none or that of another run.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step that it struck (a second one strikes at once); says where
            the checkpoint is.
    """
    _check(module, steps, accumulate, validate_every, patience, clip_norm)
    if steps == 0:
        return FitRecord(0, (), (), None, False, 0.0)
    options = {
        "module": type(module).__qualname__,
        "steps": steps,
        "seed": seed,
        "ema": ema,
        "clip_norm": clip_norm,
        "validate_every": validate_every,
        "patience": patience,
        "min_delta": min_delta,
    }
    if accumulate > 1:  # checkpoints of runs that do not accumulate name none
        options["accumulate"] = accumulate
    run = canonical({**(identity or {}), **options})
    saved = read(checkpoint, run) if resume and checkpoint is not None and checkpoint.exists() else None
    if saved is not None:
        fit_shapes(module, saved["state_dict"])
        if FINISHED in saved[RUN]:
            return _ended(module, saved)

    average = None if ema is None else Ema(ema)
    best = None if validate_every is None else KeepBest(validate_every, steps, patience, min_delta, average, seed)
    history = History(max(1, steps // SAMPLES), steps, report, best)
    between = BetweenSteps(checkpoint, checkpoint_seconds, run, seed)
    own = [callback for callback in (average, best, history) if callback is not None]
    done = 0 if saved is None else saved[RUN]["step"]
    loader = _Loader(batches, done * accumulate, steps * accumulate, workers)
    with _clear_stop(between, steps):
        callbacks = [between, *callbacks, *own]
        _train(module, loader, callbacks, accumulate, clip_norm, None if saved is None else checkpoint)
        if best is not None:
            restore(module, best.best)
        elif average is not None:
            average.copy_to(module)
        record = history.record()
        if checkpoint is not None:
            end = {"state_dict": snapshot(module), RUN: {"identity": run, FINISHED: asdict(record)}}
            module.on_save_checkpoint(end)
            write(end, checkpoint)
        if between.request.made:
            raise Stopped(record.steps)
    return record


def _ended(module: lightning.LightningModule, saved: dict[str, Any]) -> FitRecord:
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"])
    return FitRecord(**saved[RUN][FINISHED])


class _Loader:
    """The batches that are left, under the number of those of the whole run: Lightning counts on from there."""

    def __init__(self, batches: Batches, start: int, count: int, workers: int) -> None:
        self.batches, self.start, self.count, self.workers = batches, start, count, workers

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(
            DataLoader(
                _ByStep(self.batches),
                batch_size=None,
                sampler=range(self.start, self.count),
                num_workers=self.workers,
                generator=torch.Generator(),  # else the loader would draw from the global one
            )
        )


@dataclass(frozen=True, slots=True)
class _ByStep(Dataset[Any]):
    batches: Batches

    def __getitem__(self, step: int) -> Any:
        return self.batches.batch_at(step)


def _check(
    module: lightning.LightningModule,
    steps: int,
    accumulate: int,
    validate_every: int | None,
    patience: int | None,
    clip_norm: float | None,
) -> None:
    name = type(module).__name__
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    if accumulate > 1 and not module.automatic_optimization:
        raise ValueError(f"accumulate: {name} optimises by hand, so it accumulates by hand, too")
    if validate_every is None and patience is not None:
        raise ValueError("patience counts validations: give validate_every, too")
    if validate_every is not None and validate_every < 1:
        raise ValueError(f"validate_every must be at least 1, got {validate_every}")
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be at least 1, got {patience}")
    if validate_every is not None and not isinstance(module, Validated):
        raise ValueError(f"validate_every needs a module with validation_score() and score_name; {name} has them not")
    if clip_norm is not None and not module.automatic_optimization:
        raise ValueError(f"clip_norm: {name} optimises by hand, so it clips by hand, too")


def _train(
    module: lightning.LightningModule,
    loader: _Loader,
    callbacks: Sequence[lightning.Callback],
    accumulate: int,
    clip_norm: float | None,
    resumed_from: Path | None,
) -> None:
    device = module.device
    with _quiet(), signals_put_back(), seeded(0, device), torch.enable_grad():
        trainer = lightning.Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=clip_norm,
            callbacks=list(callbacks),
            plugins=[PlainFiles(), LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, loader, ckpt_path=resumed_from)
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        finally:
            module.trainer = None
            module.zero_grad(set_to_none=True)
            module.to(device)


@contextmanager
def _clear_stop(between: BetweenSteps, steps: int) -> Iterator[None]:
    """Let a stop out as a KeyboardInterrupt that says how to go on."""
    try:
        with naming_what_was_written(between.written):
            yield
    except Stopped as stop:
        if between.path is None:
            raise KeyboardInterrupt from None
        raise KeyboardInterrupt(
            f"stopped after step {stop.step} of {steps}, saved in {between.path}: resume goes on from there"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning has advice for those who write their own loops; here it says nothing but errors."""
    with warnings.catch_warnings(), only_errors("lightning.pytorch", "lightning.fabric"):
        warnings.filterwarnings("ignore", module=r"lightning\.")
        yield
