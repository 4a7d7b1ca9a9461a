"""Scores on data of their own, the best weights, and when to stop."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as lightning

from secateur.training.ema import Ema
from secateur.training.seeding import seeded
from secateur.training.steps import steps_after
from secateur.training.weights import evaluating, snapshot


@runtime_checkable
class Validated(Protocol):
    """A module that can say how good it is."""

    score_name: str
    """What the score is called where progress is shown: "PSNR"."""

    def validation_score(self) -> float:
        """How good the module is now, on views or samples that training does not see: higher is better.

        Called in evaluation mode, without gradients, and each time with torch's global generator in the same state.
        """
        ...


class KeepBest(lightning.Callback):
    """Scores the module at the start, every `every` steps and at the end, and keeps the weights that scored best.

    Args:
        every: steps between validations.
        last: the step after which training ends.
        patience: validations without improvement after which training stops; None: it never does.
        min_delta: what counts as an improvement.
        ema: whose averages are scored and kept instead of the weights themselves.
        seed: of what the score draws.
    """

    def __init__(
        self, every: int, last: int, patience: int | None, min_delta: float, ema: Ema | None, seed: int
    ) -> None:
        self.every, self.last, self.patience, self.min_delta = every, last, patience, min_delta
        self.ema, self.seed = ema, seed
        self.scores: list[tuple[int, float]] = []
        self.best_step = 0
        self.best_score = -math.inf
        self.best: dict[str, Any] = {}
        self._to_beat = -math.inf
        self._in_vain = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.scores:
            self._validate(pl_module, 0)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = steps_after(trainer, batch_idx)
        if step is None or (step % self.every and step != self.last):
            return
        self._validate(pl_module, step)
        if self.patience is not None and self._in_vain >= self.patience:
            trainer.should_stop = True

    def _validate(self, module: lightning.LightningModule, step: int) -> None:
        assert isinstance(module, Validated)
        with contextlib.ExitStack() as stack:
            if self.ema:
                stack.enter_context(self.ema.swapped(module))
            with seeded(self.seed, module.device), evaluating(module):
                score = float(module.validation_score())
            if not self.scores or score > self.best_score:
                self.best, self.best_step = snapshot(module), step
                self.best_score = -math.inf if math.isnan(score) else score
        self.scores.append((step, score))
        if score > self._to_beat and score >= self._to_beat + self.min_delta:
            self._to_beat, self._in_vain = score, 0
        else:
            self._in_vain += step > 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "scores": self.scores,
            "best_step": self.best_step,
            "best_score": self.best_score,
            "best": self.best,
            "to_beat": self._to_beat,
            "in_vain": self._in_vain,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = [(step, score) for step, score in state_dict["scores"]]
        self.best_step, self.best_score = state_dict["best_step"], state_dict["best_score"]
        self.best = state_dict["best"]
        self._to_beat, self._in_vain = state_dict["to_beat"], state_dict["in_vain"]
