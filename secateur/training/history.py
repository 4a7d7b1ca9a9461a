"""The loss as it goes, for the record and for whoever watches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as lightning
from torch import Tensor

from secateur.console import Report
from secateur.training.steps import steps_after
from secateur.training.validation import KeepBest, Validated


@dataclass(frozen=True, slots=True)
class FitRecord:
    """What a fit did.

    Args:
        steps: steps done.
        losses: (step, mean loss of the steps since the entry before).
        validations: (step, score), from step 0 on; empty without validation.
        best_step: the step whose weights the module holds; None without validation.
        stopped_early: whether the fit ended before its last step.
        seconds: how long it took, with the runs that it resumed.
    """

    steps: int
    losses: tuple[tuple[int, float], ...]
    validations: tuple[tuple[int, float], ...]
    best_step: int | None
    stopped_early: bool
    seconds: float = field(compare=False)


class History(lightning.Callback):
    """Keeps the mean loss of every `every` steps, and reports it with the score.

    Args:
        every: steps that each entry is the mean of.
        last: the step after which training ends.
        report: told after each step.
        validation: whose scores are reported, too.
    """

    def __init__(self, every: int, last: int, report: Report, validation: KeepBest | None) -> None:
        self.every, self.last, self.report, self.validation = every, last, report, validation
        self.losses: list[tuple[int, float]] = []
        self.step = 0
        self._sum: Tensor | None = None
        self._count = 0
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._doing = ""

    @property
    def seconds(self) -> float:
        """How long training has taken, with the runs that this one resumes."""
        return self._seconds_before + time.monotonic() - self._started

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            raise ValueError(f"{type(pl_module).__name__}.training_step must return its loss, got {loss!r}")
        # Lightning divides losses by how many batches a step has, so they are summed up to that of the step.
        self._sum = loss.float() if self._sum is None else self._sum.to(loss.device) + loss.float()
        step = steps_after(trainer, batch_idx)
        if step is None:
            self.report((batch_idx + 1) / trainer.accumulate_grad_batches / self.last, self._doing)
            return
        self.step = step
        self._count += 1
        if self.step % self.every == 0 or self.step == self.last or trainer.should_stop:
            self._take_down(pl_module)
        self.report(self.step / self.last, self._doing)

    def _take_down(self, module: lightning.LightningModule) -> None:
        assert self._sum is not None
        mean = float(self._sum) / self._count
        if not math.isfinite(mean):
            raise ValueError(f"the loss became {mean} by step {self.step}: a lower learning rate may help")
        self.losses.append((self.step, mean))
        self._sum, self._count = None, 0
        self._doing = f"step {self.step} of {self.last}, loss {mean:.4g}"
        if self.validation is not None and isinstance(module, Validated):
            self._doing += f", {module.score_name} {self.validation.scores[-1][1]:.4g}"

    def record(self) -> FitRecord:
        """What has happened so far."""
        return FitRecord(
            steps=self.step,
            losses=tuple(self.losses),
            validations=() if self.validation is None else tuple(self.validation.scores),
            best_step=None if self.validation is None else self.validation.best_step,
            stopped_early=self.step < self.last,
            seconds=self.seconds,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": self.losses,
            "step": self.step,
            "sum": self._sum,
            "count": self._count,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = [(step, loss) for step, loss in state_dict["losses"]]
        self.step, self._sum, self._count = state_dict["step"], state_dict["sum"], state_dict["count"]
        self._seconds_before = state_dict["seconds"]
