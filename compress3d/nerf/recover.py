"""Training that wins back what compression cost: `recover(field, capture, steps)`."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.field import Field
from compress3d.nerf.rounding import TableRounding
from compress3d.nerf.train import FieldTraining, Training, fit_field
from secateur.console import Report, silent
from secateur.training import FitRecord

RATE = 2e-3


def recover(
    field: Field,
    capture: Capture,
    steps: int,
    *,
    rounding: TableRounding | None = None,
    training: Training | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Report = silent,
) -> FitRecord:
    """Train a field further, in place; it ends as its file will hold it.

    Args:
        field: its rows, levels and occupied cells stay which they are.
        capture: photographs to train on, or a teacher's renders.
        steps: how many; 0 only rounds.
        rounding: of the table; gradients are taken where it is rounded, and pass straight through (Bengio et al.,
            arXiv 1308.3432).
        training: samples, rates, loss and seed of the steps; None: those of `Training`, with a rate of 0.002.
        checkpoint: file that is written as training goes, when it is stopped by Ctrl-C or SIGTERM, and at the end.
        resume: go on from `checkpoint` if there is one, to the same end.
        report: told how much is done.

    Raises:
        ValueError: `steps` is negative, there are no training photographs, or the checkpoint is that of another run.
        KeyboardInterrupt: Ctrl-C, after the step that it struck; says where the checkpoint is.
    """
    if not len(capture.train):
        raise ValueError(f"{capture.name}: no photographs to train on")
    settings = Training(rate=RATE, final_rate=0.1) if training is None else training
    module = FieldRecovery(capture, settings, max(steps, 1), field, rounding)
    record = fit_field(module, steps, checkpoint, resume, report)
    if rounding is not None:
        with torch.no_grad():
            field.table.copy_(rounding(field.table))
    return record


class FieldRecovery(FieldTraining):
    """Training of a field that is there, whose occupied cells stay, through a rounding.

    Args:
        capture: the posed photographs.
        training: samples, rates, loss and seed.
        steps: of the run.
        field: to go on from.
        rounding: of its table; None: none.
    """

    def __init__(
        self, capture: Capture, training: Training, steps: int, field: Field, rounding: TableRounding | None
    ) -> None:
        super().__init__(capture, training, steps, field)
        self.rounding = rounding
        digest = sha256()
        for tensor in field.tensors().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self._start = digest.hexdigest()

    def identity(self) -> dict[str, object]:
        """The field that it goes on from, and the bits of its entries."""
        return {"start": self._start, "bits": None if self.rounding is None else list(self.rounding.bits)}

    def training_step(self, batch: Int64[Tensor, ""], index: int) -> Tensor:
        if self.rounding is None:
            return super().training_step(batch, index)
        # Adam's step follows the gradient alone: taken at the rounded table, it moves the one that is not.
        table = self.field.table.data
        exact = table.clone()
        rounded = self.rounding.values(self.rounding.codes(exact))
        table.copy_(rounded)
        loss = super().training_step(batch, index)
        table.sub_(rounded).add_(exact)
        return loss

    def _renew_occupancy(self, index: int, random: torch.Generator) -> Any:
        """Cells that were found empty stay so, and those that were not are looked into until the end."""
