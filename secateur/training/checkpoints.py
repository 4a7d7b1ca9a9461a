"""Checkpoints: files of tensors and plain values, written whole or not at all, and read without unpickling code."""

from __future__ import annotations

import json
import pickle
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from secateur.files import replacing_file
from secateur.training.seeding import seed_at, seed_global
from secateur.training.stopping import StopRequest

RUN = "secateur_run"
"""The entry of a checkpoint that says which run wrote it."""


class Stopped(Exception):
    """Training was asked to stop after `step` steps."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class PlainFiles(CheckpointIO):
    """How Lightning writes and reads checkpoints here."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return _load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class BetweenSteps(lightning.Callback):
    """What has to come before anything else in a step: the checkpoint of all steps before, the stop, the seed.

    The start of a step's first batch is the one moment when nothing of the step before is left to do.

    Args:
        path: the checkpoint; None: none is written.
        seconds: how much time lies between checkpoints, at least.
        identity: what `read` compares, as `canonical` makes it.
        seed: of what the steps draw from torch's global generators.
    """

    def __init__(self, path: Path | None, seconds: float, identity: str, seed: int) -> None:
        self.path, self.seconds, self.identity, self.seed = path, seconds, identity, seed
        self.request = StopRequest()
        self.written: list[Path] = []
        self._step = 0
        self._last = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.request.listen()
        for config in trainer.lr_scheduler_configs:
            config.interval = "step"  # a fit has steps; its one epoch ends with it

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed_global(seed_at(self.seed, batch_idx), pl_module.device)
        self._step, rest = divmod(batch_idx, trainer.accumulate_grad_batches)
        if rest:
            return  # half of a step's gradients are in no checkpoint
        due = self.path is not None and time.monotonic() - self._last >= self.seconds
        if self.path is not None and (due or self.request.made):
            trainer.save_checkpoint(self.path)
            self.written[:] = [self.path]
            self._last = time.monotonic()
        if self.request.made:
            raise Stopped(self._step)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RUN] = {"identity": self.identity, "step": self._step}
        checkpoint.pop(pl_module.CHECKPOINT_HYPER_PARAMS_KEY, None)  # may be any objects, and nothing reads them


def canonical(identity: Mapping[str, Any]) -> str:
    """The settings of a run as JSON.

    Raises:
        ValueError: a value is none that JSON knows.
    """
    try:
        return json.dumps(identity, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"identity must hold numbers, strings, lists and mappings of them: {error}") from None


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Replace the file at `path`.

    Raises:
        ValueError: the checkpoint holds something else than tensors and plain values, so it could not be read back.
    """
    with replacing_file(path) as temporary:
        torch.save(dict(checkpoint), temporary)
        try:
            torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)  # mapped: tensors are not read
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path}: what modules, optimisers and callbacks save must be tensors and plain values; {_found(error)}"
            ) from None


def read(path: Path, identity: str) -> dict[str, Any]:
    """The checkpoint at `path`; its tensors are mapped from the file, to be copied.

    Raises:
        ValueError: it is none, or it is that of a run with another `identity` (as `canonical` makes it).
    """
    checkpoint = _load(path, mapped=True)
    saved = json.loads(checkpoint[RUN]["identity"])
    wanted = json.loads(identity)
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved or name not in wanted or saved[name] != wanted[name]:
            raise ValueError(
                f"{path} is the checkpoint of another run: {name} was {saved.get(name)!r} and is {wanted.get(name)!r};"
                " go on with the settings of that run, or start anew without resume"
            )
    return checkpoint


def _load(path: Path, mapped: bool = False) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint, or a damaged one: {_found(error)}") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(RUN), dict):
        raise ValueError(f"{path} is no checkpoint of secateur: it has no {RUN!r}")
    return checkpoint


def _found(error: Exception) -> str:
    """Which object torch would not unpickle; its own words go on to say how to do it all the same."""
    name = re.search(r"GLOBAL (\S+)", str(error))
    return f"it holds {name[1]}" if name else "it cannot be read"
