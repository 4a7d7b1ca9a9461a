"""Joint training of a pruned scene, its features and its head against pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from compress3d.photometric import photometric_loss
from compress3d.splats.compensation import CompensationHead
from compress3d.splats.parameters import LearningRates, TrainableScene
from compress3d.splats.pictures import WHITE, Pictures, counted, drawn_background
from compress3d.splats.pruning import spectral_selection
from compress3d.splats.recover import Recover
from compress3d.splats.scene import SplatScene
from compress3d.splats.sundae.compensated import BothImages, CompensatedScene
from secateur.allocation import Budget, allocate
from secateur.console import Report, silent
from secateur.metrics.image import psnr
from secateur.training import FitRecord, Shuffled, cosine, fit, generator_at

VALIDATIONS = 8
"""How often a training is validated."""


@dataclass(frozen=True, slots=True)
class BothPsnr:
    """Mean PSNR over pictures, in dB: as the head shows the scene, and as an ordinary viewer does."""

    with_head: float
    without_head: float


@dataclass(frozen=True, slots=True)
class CompensationRecord:
    """What a joint training did.

    Args:
        fit: the loss as it went; its scores are PSNRs with the head.
        before: of the scene that it began with.
        after: of what it made. Both are against the validation pictures; None without any.
    """

    fit: FitRecord
    before: BothPsnr | None
    after: BothPsnr | None


@dataclass(frozen=True, slots=True)
class Compensate:
    """Photometric gradient steps on all tensors of a scene, on the features of its Gaussians, and on the head.

    A step takes about one and a half times that of `Recover`, which has the schedule and the loss from here.

    Args:
        steps: one picture each; 0 leaves everything as it is.
        rates: Adam's step sizes for the scene.
        features_rate: the one for the features.
        head_rate: the one for the head; 1e-3 in the released code.
        without_head: share of the loss that looks at the render as it is before the head: with 0 the scene learns to
            please the head alone, and looks worse in ordinary viewers.
        warmup: share of the steps over which the rates rise.
        final_rate: factor of the rates at the end of their half cosine.
        dssim: weight of the structural part of the loss.
        backgrounds: share of the steps with a random background instead of white.
        seed: of the order of the pictures and of the backgrounds.

    Raises:
        ValueError: `without_head` is not between 0 and 1.
    """

    steps: int = 600
    rates: LearningRates = field(default_factory=lambda: Recover().rates)
    features_rate: float = 1e-2
    head_rate: float = 2e-3
    without_head: float = 0.2
    warmup: float = 0.05
    final_rate: float = 0.05
    dssim: float = 0.2
    backgrounds: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.without_head <= 1:
            raise ValueError(f"without_head must be between 0 and 1, got {self.without_head}")

    def __call__(
        self,
        start: CompensatedScene,
        pictures: Sequence[Pictures],
        validation: Pictures | None = None,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
        report: Report = silent,
    ) -> tuple[CompensatedScene, CompensationRecord]:
        """Train scene, features and head together.

        Args:
            start: mostly `CompensatedScene.start` of a pruned scene; it is not changed.
            pictures: renders of the original, photographs, or both; each picture counts alike.
            validation: pictures of views that are neither learnt from nor judged by: what looks best there with the
                head is kept, and the start is in the running.
            checkpoint, resume: as `secateur.training.fit`.
            report: told how far it is.

        Raises:
            ValueError: there are no pictures.
        """
        if not any(len(part.cameras) for part in pictures):
            raise ValueError("compensation needs at least one picture")
        module = _Compensation(start, self, pictures, validation)
        record = fit(
            module,
            Shuffled(len(module.places), 1, self.seed),
            steps=self.steps,
            seed=self.seed,
            validate_every=None if validation is None else max(1, self.steps // VALIDATIONS),
            checkpoint=checkpoint,
            resume=resume,
            identity={
                "gaussians": len(start),
                "pictures": len(module.places),
                "head": start.head.name,
                **start.head.settings(),
            },
            report=report,
        )
        made = module.frozen()
        if validation is None:
            return made, CompensationRecord(record, None, None)
        return made, CompensationRecord(record, psnr_both(start, validation), psnr_both(made, validation))


def spectral_cut(scene: SplatScene, keep: float | int, gamma: float = 0.8, *, strict: bool = False) -> SplatScene:
    """SUNDAE's one-shot pruning (section 3.2), by the spectrum of the scene's graph.

    Args:
        scene: trained, on the CPU.
        keep: a count of Gaussians (int) or a share of them (float).
        gamma, strict: as in `compress3d.splats.pruning.spectral_selection`.
    """
    budget = Budget(limit=keep) if isinstance(keep, int) else Budget(share=keep)
    return scene.cut(allocate(spectral_selection(gamma, strict).score(scene), scene.groups(), budget))


@torch.no_grad()
def psnr_both(compensated: CompensatedScene, pictures: Pictures) -> BothPsnr:
    """Mean PSNR in front of white over all pictures, of the pixels that count.

    Raises:
        ValueError: there are no pictures.
    """
    if not len(pictures.cameras):
        raise ValueError("no pictures to compare with")
    pairs = list(_both(compensated, pictures))
    with_head, without_head = (sum(each) / len(pairs) for each in zip(*pairs, strict=True))
    return BothPsnr(with_head, without_head)


def _both(compensated: CompensatedScene, pictures: Pictures) -> Iterator[tuple[float, float]]:
    for index, images in enumerate(compensated.render_both(pictures.cameras)):
        target = pictures.image(index, torch.tensor(WHITE)).to(images.with_head)
        mask = pictures.mask(index)
        counts = torch.ones(target.shape[:2]) if mask is None else mask
        unmasked = 10 * math.log10(max(float(counts.mean()), 1e-6))
        weights = counts.to(target)[..., None]
        decibels = [psnr((image.clamp(0, 1) * weights)[None], (target * weights)[None]) for image in images]
        yield float(decibels[0]) + unmasked, float(decibels[1]) + unmasked


class _Compensation(lightning.LightningModule):
    score_name = "PSNR"

    def __init__(
        self,
        start: CompensatedScene,
        options: Compensate,
        pictures: Sequence[Pictures],
        validation: Pictures | None,
    ) -> None:
        super().__init__()
        self.trainable = TrainableScene(start.scene)
        self.features = nn.Parameter(start.features.detach().clone())
        self.head = _copied(start.head)
        self.options, self.pictures, self.validation = options, tuple(pictures), validation
        self.places = [(part, index) for part in self.pictures for index in range(len(part.cameras))]

    def frozen(self) -> CompensatedScene:
        return CompensatedScene(self.trainable.frozen(), self.features.detach().clone(), _copied(self.head))

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        part, index = self.places[int(batch[0])]
        background = drawn_background(generator_at(self.options.seed + 1, step), self.options.backgrounds)
        images = self._render(part, index, background)
        target, *shown = counted(part, index, part.image(index, background).to(images.with_head), *images)
        share = self.options.without_head
        losses = [
            weight * photometric_loss(image, target, self.options.dssim)
            for weight, image in zip((1 - share, share), shown, strict=True)
            if weight
        ]
        return losses[0] if len(losses) == 1 else losses[0] + losses[1]

    def validation_score(self) -> float:
        assert self.validation is not None
        return psnr_both(self.frozen(), self.validation).with_head

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LambdaLR]]:
        options = self.options
        cameras = max((part.cameras for part in self.pictures), key=len)
        optimizer = self.trainable.optimizer(options.rates, cameras.extent)
        if self.features.numel():
            optimizer.add_param_group({"params": [self.features], "lr": options.features_rate})
        optimizer.add_param_group({"params": list(self.head.parameters()), "lr": options.head_rate, "eps": 1e-8})
        schedule = cosine(int(options.warmup * options.steps), options.steps, options.final_rate)
        return [optimizer], [LambdaLR(optimizer, schedule)]

    def _render(self, part: Pictures, index: int, background: Tensor) -> BothImages:
        red, green, blue = background.tolist()
        compensated = CompensatedScene(self.trainable.scene(), self.features, self.head)
        return next(compensated.render_both(part.cameras[index], (red, green, blue)))


def _copied(head: CompensationHead) -> CompensationHead:
    """A head of its own, with the weights of another."""
    copy = head.built(head.settings()).to(next(head.parameters()))
    copy.load_state_dict(head.state_dict())
    return copy
