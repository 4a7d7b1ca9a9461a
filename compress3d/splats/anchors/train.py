"""Neural fields from photographs: one loop for Scaffold-GS and GaussianForest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from compress3d.captures import Capture
from compress3d.photometric import photometric_loss
from compress3d.splats.anchors.field import NeuralField, rasterize, render_field
from compress3d.splats.anchors.rows import Grower
from secateur.console import Report, silent
from secateur.metrics.image import psnr
from secateur.training.batches import Shuffled
from secateur.training.fit import fit
from secateur.training.history import FitRecord
from secateur.training.rates import exponential_decay

_STATE = "grower"
"""The entry of a checkpoint that holds what the grower has seen."""


class FieldTraining(lightning.LightningModule):
    """Trains a field on the photographs of a capture's training split, one a step.

    The loss is that of 3DGS with the field's regularisation (Scaffold-GS, section 3.4). Parameters change their rows
    between steps, as the grower has it.

    Args:
        field: trained in place.
        capture: the photographs.
        grower: of this field; None: its units stay as many as they are.
        steps: of the whole run, over which learning rates decay.
        dssim: weight of the structural part of the loss.
    """

    score_name = "PSNR"

    def __init__(
        self, field: NeuralField, capture: Capture, grower: Grower | None, steps: int, dssim: float = 0.2
    ) -> None:
        super().__init__()
        self.field, self.capture, self.grower = field, capture, grower
        self.steps, self.dssim = steps, dssim
        self.background = torch.tensor(capture.background)
        self._adam: Adam | None = None
        self._seen: tuple[Any, ...] | None = None

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        index = int(self.capture.train[batch[0]])
        camera, target = self.capture.cameras[index], self.capture.image(index)
        units = self.field.units_in_view(camera)
        gaussians = self.field.decode_units(camera, units)
        image, meta = rasterize(gaussians, camera, self.background)
        if self.grower is not None and self.grower.schedule.observes(step):
            meta["means2d"].retain_grad()
            self._seen = (camera, units, gaussians, meta)
        if (mask := self.capture.mask(index)) is not None:
            image, target = image * mask[..., None], target * mask[..., None]
        return photometric_loss(image, target, self.dssim) + self.field.regularization(gaussians)

    def on_after_backward(self) -> None:
        if self.grower is not None and self._seen is not None:
            self.grower.observe(*self._seen)
        self._seen = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = batch_idx + 1
        if self.grower is not None and self._adam is not None and done < self.steps and self.grower.schedule.due(done):
            self.grower.update(self._adam, done)

    def configure_optimizers(self) -> Any:
        rates = self.field.learning_rates(self.capture.cameras.extent)
        groups = []
        for name, (first, _) in rates.items():
            owner = getattr(self.field, name)
            groups.append({"params": [owner] if isinstance(owner, Tensor) else list(owner.parameters()), "lr": first})
        self._adam = Adam(groups, eps=1e-15)
        decays = [exponential_decay(last / first, max(1, self.steps)) for first, last in rates.values()]
        return {"optimizer": self._adam, "lr_scheduler": LambdaLR(self._adam, decays)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.grower is not None:
            checkpoint[_STATE] = self.grower.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.grower is not None:
            self.grower.load_state_dict(checkpoint[_STATE])


def train_field(
    field: NeuralField,
    capture: Capture,
    grower: Grower | None,
    *,
    steps: int,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Report = silent,
) -> FitRecord:
    """Train `field` in place on the training split of `capture`; see `FieldTraining` and `secateur.training.fit`.

    Args:
        field: a `ScaffoldField` or a `ForestField`.
        capture: the photographs.
        grower: an `AnchorGrower` or a `ForestGrower` of this field, or None.
        steps: one photograph each.
        seed: of the order of the photographs.
        checkpoint: file to go on from.
        resume: go on from it if it is there.
        report: told how far the training is.

    Raises:
        ValueError: the capture has nothing to train on; and as `fit`.
    """
    if not len(capture.train):
        raise ValueError(f"{capture.name}: no photographs to train on")
    return fit(
        FieldTraining(field, capture, grower, steps),
        Shuffled(len(capture.train), 1, seed),
        steps=steps,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
        identity={
            "field": field.method,
            **field.settings_record(),
            "capture": capture.name,
            "seed": seed,
            "schedule": None if grower is None else asdict(grower.schedule),
        },
        report=report,
    )


@torch.no_grad()
def field_images(field: NeuralField, capture: Capture, indices: Tensor) -> Float[Tensor, "C H W 3"]:
    """What the field shows where the photographs at `indices` were taken."""
    images = render_field(field, capture.cameras[indices], capture.background)
    return torch.stack(list(images))


def field_psnr(field: NeuralField, capture: Capture, indices: Tensor) -> float:
    """Mean over the photographs at `indices`, in dB."""
    photographs = torch.stack([capture.image(int(index)) for index in indices])
    return float(psnr(field_images(field, capture, indices), photographs).mean())
