"""The Lightning module of a recovery."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from compress3d.photometric import photometric_loss
from compress3d.splats.parameters import TrainableScene
from compress3d.splats.pictures import WHITE, Pictures, counted, drawn_background
from compress3d.splats.rasterize import render
from compress3d.splats.recover import Recover
from compress3d.splats.rounding import Rounding
from compress3d.splats.scene import SplatScene
from secateur.metrics.image import psnr
from secateur.training import cosine, generator_at


class RecoveryModule(lightning.LightningModule):
    """A scene that learns to look like pictures; arguments as `Recover` takes them."""

    score_name = "PSNR"

    def __init__(
        self,
        scene: SplatScene,
        options: Recover,
        pictures: Sequence[Pictures],
        validation: Pictures | None,
        rounding: Rounding | None,
    ) -> None:
        super().__init__()
        self.trainable = TrainableScene(scene)
        self.options, self.pictures, self.validation = options, tuple(pictures), validation
        self.rounding = rounding
        self.places = [(part, index) for part in self.pictures for index in range(len(part.cameras))]

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        part, index = self.places[int(batch[0])]
        background = drawn_background(generator_at(self.options.seed + 1, step), self.options.backgrounds)
        image = self._render(part, index, background)
        image, target = counted(part, index, image, part.image(index, background).to(image))
        return photometric_loss(image, target, self.options.dssim)

    def validation_score(self) -> float:
        assert self.validation is not None
        white = torch.tensor(WHITE, device=self.device)
        images = [self._render(self.validation, index, white) for index in range(len(self.validation.cameras))]
        targets = [self.validation.image(index, white).to(white) for index in range(len(images))]
        return float(psnr(torch.stack(images), torch.stack(targets)).mean())

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LambdaLR]]:
        cameras = max((part.cameras for part in self.pictures), key=len)
        optimizer = self.trainable.optimizer(self.options.rates, cameras.extent)
        steps, warmup = self.options.steps, int(self.options.warmup * self.options.steps)
        return [optimizer], [LambdaLR(optimizer, cosine(warmup, steps, self.options.final_rate))]

    def _render(self, part: Pictures, index: int, background: Tensor) -> Tensor:
        scene = self.trainable.scene()
        seen = scene if self.rounding is None else self.rounding(scene)
        red, green, blue = background.tolist()
        return render(seen, part.cameras[index], (red, green, blue))[0]
