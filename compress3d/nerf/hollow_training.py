"""Training of a field that becomes hollow: `train_hollow(capture)`.

HollowNeRF (Xie et al., arXiv 2308.10122) bounds the mean saliency, which is its L1 norm, by an augmented Lagrangian;
here the bound is a set that the alternating direction method of multipliers projects onto (`secateur.solvers.admm`).
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.field import Field
from compress3d.nerf.hollow import HollowField, hollowed
from compress3d.nerf.recover import recover
from compress3d.nerf.train import FieldTraining, Training, fit_field
from secateur.console import Report, silent, stretch
from secateur.report.notebook import table_html
from secateur.solvers.admm import Residuals, Split, onto_l1_ball
from secateur.training import FitRecord


@dataclass(frozen=True, slots=True)
class Hollowing:
    """How a field becomes hollow.

    Args:
        share: the most of the mean saliency, C: 0.04 in the publication.
        resolution: vertices a side of the saliency grid, T.
        rho: weight of the penalty, on the mean over the vertices.
        start: share of the run after which saliencies are bound.
        every: steps between moves of the multipliers.
        finish: share of the steps that train the plain field at the end.

    Raises:
        ValueError: a number is out of range.
    """

    share: float = 0.04
    resolution: int = 64
    rho: float = 4e-3
    start: float = 0.1
    every: int = 8
    finish: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not self.rho > 0 or self.every < 1:
            raise ValueError(
                f"share must be in (0, 1], rho above 0, every at least 1, got {self.share}, {self.rho} and {self.every}"
            )
        if not 0 <= self.start < 1 or not 0 <= self.finish < 1:
            raise ValueError(f"start and finish must be in [0, 1), got {self.start} and {self.finish}")


@dataclass(frozen=True, slots=True)
class HollowRecord:
    """What a training of a hollow field did.

    Args:
        mean_saliency: at the end of the bound part, of what the projection leaves.
        salient: share of the vertices whose saliency is not 0.
        residuals: of the bound, after each move of the multipliers.
        bound: the fit under the saliency grid.
        plain: the fit of the plain field after it.
    """

    mean_saliency: float
    salient: float
    residuals: tuple[Residuals, ...]
    bound: FitRecord
    plain: FitRecord

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        from compress3d.nerf.tables import hollow_table  # which names this class

        return table_html(hollow_table(self))


def train_hollow(
    capture: Capture,
    *,
    steps: int,
    training: Training | None = None,
    hollowing: Hollowing | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Report = silent,
) -> tuple[Field, HollowRecord]:
    """Train a field, and where it is hollow, on the training photographs of a capture.

    What the bound has made 0 is cut out of the occupied cells for good: no ray asks there again, and the rows of the
    tables that such cells read belong to the cells that can be seen. The last steps train the field without the grid.

    Args:
        capture: the posed photographs.
        steps: of both parts together.
        training: how; `Training()` when None.
        hollowing: how it becomes hollow; `Hollowing()` when None.
        device: where it is trained, and the field is in the end.
        checkpoint: file that is written as training goes, when it is stopped by Ctrl-C or SIGTERM, and at the end of
            the bound part; the part after it has one beside it, NAME-plain.
        resume: go on from them if they are there, to the same end.
        report: told how much is done.

    Returns:
        a plain field, whose file holds a bit a cell for all this; and the record.

    Raises:
        ValueError: there are no training photographs, too few steps, or a checkpoint is that of another run.
        KeyboardInterrupt: Ctrl-C, after the step that it struck; says where the checkpoint is.
    """
    training, hollowing = training or Training(), hollowing or Hollowing()
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    finish = round(hollowing.finish * steps)
    module = HollowTraining(capture, training, steps - finish, hollowing, device)
    bound = fit_field(module, steps - finish, checkpoint, resume, stretch(report, 0.0, 1 - hollowing.finish))
    salient = module.split.z > 0
    field = hollowed(module.hollow, salient)
    onward = replace(training, rate=training.rate * training.final_rate * 10, final_rate=0.1)
    beside = None if checkpoint is None else checkpoint.with_stem(f"{checkpoint.stem}-plain")
    plain = recover(
        field,
        capture,
        finish,
        training=onward,
        checkpoint=beside,
        resume=resume,
        report=stretch(report, 1 - hollowing.finish, 1.0),
    )
    mean, share = float(module.split.z.mean()), float(salient.float().mean())
    return field, HollowRecord(mean, share, tuple(module.residuals), bound, plain)


class HollowTraining(FieldTraining):
    """Training of a field and its saliencies, whose mean the multipliers bound.

    Args:
        capture: the posed photographs.
        training: how.
        steps: of the run.
        hollowing: how it becomes hollow.
        device: where it is trained.
    """

    def __init__(
        self,
        capture: Capture,
        training: Training,
        steps: int,
        hollowing: Hollowing,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(capture, training, steps, device=device)
        self.hollow = HollowField(self.field, hollowing.resolution)
        self.field = self.hollow
        self.hollowing = hollowing
        vertices = self.hollow.vertex_saliencies().detach()
        ball = onto_l1_ball(hollowing.share * len(vertices))
        # What photographs say of a vertex falls with their number; so must what the bound says.
        self.split = Split(vertices, ball, hollowing.rho / len(vertices), balance=None)
        self.residuals: list[Residuals] = []
        self._first = round(hollowing.start * steps)

    def identity(self) -> dict[str, object]:
        """How the field becomes hollow."""
        return {f"hollow_{name}": value for name, value in asdict(self.hollowing).items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        residuals = [astuple(one) for one in self.residuals]
        checkpoint["hollow_training"] = {"z": self.split.z, "u": self.split.u, "residuals": residuals}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["hollow_training"]
        self.split.z, self.split.u = (state[name].to(self.hollow.device, copy=True) for name in ("z", "u"))
        self.residuals = [Residuals(*one) for one in state["residuals"]]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: Any = super().configure_optimizers()
        optimizer.add_param_group({"params": [self.hollow.saliency], "weight_decay": 0.0})
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def training_step(self, batch: Int64[Tensor, ""], index: int) -> Tensor:
        if index >= self._first:
            if (index - self._first) % self.hollowing.every == 0:
                self.residuals.append(self.split.dual_step(self.hollow.vertex_saliencies().detach()))
            # Its gradient waits for that of the photographs, to which the step adds it.
            self.manual_backward(self.split.penalty(self.hollow.vertex_saliencies()))
        return super().training_step(batch, index)
