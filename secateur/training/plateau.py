"""Learning rates that fall where validation no longer improves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as lightning

from secateur.training.validation import KeepBest


class FallOnPlateau(lightning.Callback):
    """Multiplies the learning rate by `factor` whenever `patience` validations in a row have not been the best so far.

        fit(module, batches, steps=1000, validate_every=50, callbacks=[FallOnPlateau()])

    It looks at the validations that `secateur.training.fit` makes, and changes the rates of every parameter group; so
    no scheduler should set them, too.

    Args:
        patience: validations without improvement that are borne before the rate falls.
        factor: of the rate, 0 to 1.

    Raises:
        ValueError: an option is out of range, or, as training starts, nothing is validated.
    """

    def __init__(self, patience: int = 3, factor: float = 0.5) -> None:
        if patience < 0 or not 0 < factor < 1:
            raise ValueError(f"patience >= 0 and 0 < factor < 1 are needed, got {patience} and {factor}")
        self.patience, self.factor = patience, factor
        self.fallen = 0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # The fit's own callbacks come later in a step, so what they found is seen at the start of the next one.
        keeper = next((callback for callback in trainer.callbacks if isinstance(callback, KeepBest)), None)  # type: ignore[attr-defined]
        if keeper is None:
            raise ValueError("FallOnPlateau follows validations: give fit validate_every, too")
        due = falls([score for _, score in keeper.scores], self.patience)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self.factor ** (due - self.fallen)
        self.fallen = due

    def state_dict(self) -> dict[str, Any]:
        return {"fallen": self.fallen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fallen = state_dict["fallen"]


def falls(scores: Sequence[float], patience: int) -> int:
    """How often more than `patience` scores in a row were no better than the best before; each fall starts anew."""
    best, in_vain, count = -float("inf"), 0, 0
    for score in scores:
        if score > best:
            best, in_vain = score, 0
        else:
            in_vain += 1
        if in_vain > patience:
            in_vain, count = 0, count + 1
    return count
