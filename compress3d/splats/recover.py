"""Win back what compression cost, by gradients: a smaller scene learns to look like the original's own renders.

No photographs are needed, because the original is the teacher; where there are some, they join its renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import lightning.pytorch as lightning
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from compress3d.photometric import photometric_loss
from compress3d.splats.parameters import LearningRates, TrainableScene, extent
from compress3d.splats.pictures import Pictures
from compress3d.splats.rasterize import render
from compress3d.splats.rounding import Rounding
from compress3d.splats.scene import SplatScene
from secateur.console import Report, silent
from secateur.metrics.image import psnr
from secateur.training import FitRecord, Shuffled, cosine, fit, generator_at

RECOVERY = 600
"""Steps of a recovery unless told otherwise; `secateur splat compress --help` says so, too."""

WHITE = (1.0, 1.0, 1.0)
VALIDATIONS = 8
"""How often a recovery is validated."""


@dataclass(frozen=True, slots=True)
class Recover:
    """Self-distillation: photometric gradient steps on all tensors of a scene.

    Time is that of `steps` renders, forward and backward; memory a few copies of the scene beside the pictures.

    Args:
        steps: one picture each; 0 leaves the scene as it is.
        rates: Adam's step sizes at the peak of the schedule. The means, which are right already, move less than in
            training; colours and shapes, for which there are few steps, learn faster.
        warmup: share of the steps over which the rates rise, while Adam's second moments settle.
        final_rate: factor of the rates at the end of their half cosine.
        dssim: weight of the structural part of the loss.
        backgrounds: share of the steps with a random background instead of white: on white alone, what is transparent
            would be learnt as white.
        ema: decay of the average of the weights that is kept; None keeps the last ones.
        seed: of the order of the pictures and of the backgrounds.
    """

    steps: int = RECOVERY
    rates: LearningRates = field(
        default_factory=lambda: LearningRates(means=5e-5, quats=2e-3, scales=5e-3, opacities=2e-2, sh0=5e-3, shN=1e-3)
    )
    warmup: float = 0.05
    final_rate: float = 0.05
    dssim: float = 0.2
    backgrounds: float = 0.5
    ema: float | None = None
    seed: int = 0

    def finer(self, steps: int) -> Recover:
        """What may follow this recovery: `steps` that begin at a third of its rates, without a warm-up."""
        rates = LearningRates(**{name: rate / 3 for name, rate in asdict(self.rates).items()})
        return replace(self, steps=steps, rates=rates, warmup=0.0, seed=self.seed + 1)

    def __call__(
        self,
        scene: SplatScene,
        pictures: Sequence[Pictures],
        validation: Pictures | None = None,
        *,
        rounding: Rounding | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
        report: Report = silent,
    ) -> tuple[SplatScene, FitRecord]:
        """Recover a scene.

        Args:
            scene: what compression left of the original; it is not changed.
            pictures: the original's renders, photographs, or both; each picture counts alike.
            validation: pictures of views that are neither learnt from nor judged by: the weights that look best there
                are the ones that are kept, and those of the start are among them.
            rounding: what the file's format will do to the scene; it is then part of every render.
            checkpoint, resume: as `secateur.training.fit`.
            report: told how far it is.

        Returns:
            the recovered scene, before rounding, and the record of the fit.

        Raises:
            ValueError: there are no pictures.
        """
        if not any(len(part.cameras) for part in pictures):
            raise ValueError("recovery needs at least one picture")
        module = _Recovery(scene, self, pictures, validation, rounding)
        record = fit(
            module,
            Shuffled(len(module.places), 1, self.seed),
            steps=self.steps,
            seed=self.seed,
            ema=self.ema,
            validate_every=None if validation is None else max(1, self.steps // VALIDATIONS),
            checkpoint=checkpoint,
            resume=resume,
            identity={"gaussians": len(scene), "pictures": len(module.places)},
            report=report,
        )
        return module.trainable.frozen(), record


class _Recovery(lightning.LightningModule):
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
        background = self._background(step)
        image = self._render(part, index, background)
        target, mask = part.image(index, background).to(image), part.mask(index)
        if mask is not None:
            image, target = image * mask[..., None], target * mask[..., None]
        return photometric_loss(image, target, self.options.dssim)

    def validation_score(self) -> float:
        assert self.validation is not None
        white = torch.tensor(WHITE, device=self.device)
        images = [self._render(self.validation, index, white) for index in range(len(self.validation.cameras))]
        targets = [self.validation.image(index, white).to(white) for index in range(len(images))]
        return float(psnr(torch.stack(images), torch.stack(targets)).mean())

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LambdaLR]]:
        cameras = max((part.cameras for part in self.pictures), key=len)
        optimizer = self.trainable.optimizer(self.options.rates, extent(cameras))
        steps, warmup = self.options.steps, int(self.options.warmup * self.options.steps)
        return [optimizer], [LambdaLR(optimizer, cosine(warmup, steps, self.options.final_rate))]

    def _background(self, step: int) -> Float[Tensor, " 3"]:
        drawn = torch.rand(4, generator=generator_at(self.options.seed + 1, step))
        return drawn[:3] if float(drawn[3]) < self.options.backgrounds else torch.tensor(WHITE)

    def _render(self, part: Pictures, index: int, background: Tensor) -> Tensor:
        scene = self.trainable.scene()
        seen = scene if self.rounding is None else self.rounding(scene)
        red, green, blue = background.tolist()
        return render(seen, part.cameras[index], (red, green, blue))[0]
