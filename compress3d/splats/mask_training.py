"""Learn which Gaussians the pictures can do without: masks on opacity and size, while the scene stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from compress3d.cameras import Cameras
from compress3d.photometric import photometric_loss
from compress3d.splats.pictures import Pictures, Renders, counted, drawn_background
from compress3d.splats.rasterize import render
from compress3d.splats.scene import GAUSSIANS, SplatScene
from secateur.console import Report, silent
from secateur.masks import HardConcrete, TrainableMask
from secateur.training import FitRecord, Shuffled, fit, generator_at
from secateur.units import Scores, UnitGroup


@contextmanager
def shrunk(scene: SplatScene, masks: Mapping[str, Tensor]) -> Iterator[SplatScene]:
    """A scene whose opacities and standard deviations are those of `scene` times `masks["gaussians"]`.

    Both shrink, as in Compact 3D Gaussian Representation (Lee et al. 2024, arXiv 2311.13681, equation 3), so that a
    Gaussian on its way out makes room instead of becoming a veil. Ones change nothing, bit for bit; 0 is the cut, since
    nothing of opacity 0 is drawn.

    Args:
        scene: N Gaussians, not changed.
        masks: (N,) in [0, 1], differentiable.

    Raises:
        ValueError: the mask's shape is wrong.
    """
    with scene.masked(masks):
        # Not below the smallest size that is felt: the logarithm of 0 has no gradient.
        smaller = scene.scales + torch.log(masks[GAUSSIANS].clamp_min(1e-6))[:, None]
    seen = scene.with_tensors(scales=smaller)
    with seen.masked(masks):
        yield seen


@dataclass(frozen=True, slots=True)
class LearnedMask:
    """Learned volume masks (Compact 3D Gaussian Representation, Lee et al. 2024, arXiv 2311.13681).

    Masks are trained on photometric loss + weight * penalty, and only they: the rest of the scene is for recovery,
    after the cut. Time is that of `steps` renders, forward and backward.

    Against a scene's own renders nothing has a gradient until something is missing. A hard mask (`StraightThrough`) has
    all there, and with Adam's even steps all would go at once; `noise` on the pictures makes the logits of what the
    pictures hang on wander, while those of the others fall. A random mask (`HardConcrete`) always misses something,
    and learns what is missed together, which no score of single Gaussians knows (on a real scene, with a quarter kept,
    0.9 dB above `Visibility`, the best of those).

    Args:
        mask: makes the mask, with its options; of `secateur.masks`.
        steps: one picture each.
        rate: Adam's step size; the paper's 0.01 is meant for tens of thousands of steps.
        weight: of the penalty. The paper's is 0.0005, or 0.004 on synthetic scenes, for hard masks in training from
            photographs. The default suits random masks over hundreds of steps; hard ones need less (0.02), lest all
            fall together.
        share: the penalty rests while the masks would keep no more than this; 0: it never does, as in the paper.
        noise: standard deviation of what is added to the pictures; 1 / 255 is that of their 8 bits, about.
        backgrounds: share of the steps with a random background instead of white.
        dssim: weight of the structural part of the photometric loss.
        seed: of the order of the pictures, the noise and the backgrounds.
    """

    mask: Callable[[Sequence[UnitGroup]], TrainableMask] = HardConcrete
    steps: int = 400
    rate: float = 0.05
    weight: float = 0.5
    share: float = 0.25
    noise: float = 1 / 255
    backgrounds: float = 0.5
    dssim: float = 0.2
    seed: int = 0

    def score(self, scene: SplatScene, calibration: Pictures | Cameras | None = None) -> Scores:
        """(N,) float64 chances to stay, 0 to 1, in the order of the masks' logits.

        Args:
            scene: N Gaussians, at least one.
            calibration: pictures of it, or cameras to render them at.

        Raises:
            ValueError: there are no pictures.
        """
        if calibration is None:
            raise ValueError("masks are learned from pictures: pass them, or Cameras to render the scene at")
        pictures = Renders.of(scene, calibration) if isinstance(calibration, Cameras) else calibration
        mask, _ = self.fit(scene, pictures)
        logits = zip(mask.groups, mask.logits, strict=True)
        return {group.name: mask.probability(each.detach().double()) for group, each in logits}

    def fit(
        self,
        scene: SplatScene,
        pictures: Pictures,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
        report: Report = silent,
    ) -> tuple[TrainableMask, FitRecord]:
        """The trained mask, in evaluation mode, and the record of its fit.

        `scene.cut(mask.keep(Budget(limit=count)))` keeps exactly `count` Gaussians; `mask.keep()` what was learned.

        Args:
            scene: N Gaussians, at least one; not changed.
            pictures: what it should look like: its own renders, or photographs.
            checkpoint, resume, report: as `secateur.training.fit`.

        Raises:
            ValueError: there are no pictures.
        """
        if not len(pictures.cameras):
            raise ValueError("masks are learned from pictures, and there is none")
        module = _MaskFit(scene, self, pictures)
        record = fit(
            module,
            Shuffled(len(pictures.cameras), 1, self.seed),
            steps=self.steps,
            seed=self.seed,
            checkpoint=checkpoint,
            resume=resume,
            identity={"gaussians": len(scene), "pictures": len(pictures.cameras)},
            report=report,
        )
        return module.mask.eval(), record


class _MaskFit(lightning.LightningModule):
    def __init__(self, scene: SplatScene, options: LearnedMask, pictures: Pictures) -> None:
        super().__init__()
        still = {name: tensor.detach() for name, tensor in scene.tensors().items()}
        self.options, self.pictures, self.scene = options, pictures, scene.with_tensors(**still)
        self.mask = options.mask(scene.groups()).to(scene.means.device)

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        index, options = int(batch[0]), self.options
        generator = generator_at(options.seed + 1, step)
        background = drawn_background(generator, options.backgrounds)
        red, green, blue = background.tolist()
        with shrunk(self.scene, self.mask()) as scene:
            image = render(scene, self.pictures.cameras[index], (red, green, blue))[0]
        picture = self.pictures.image(index, background.to(image)).to(image)
        picture = picture + options.noise * torch.randn(picture.shape, generator=generator).to(picture)
        image, picture = counted(self.pictures, index, image, picture)
        loss = photometric_loss(image, picture, options.dssim)
        return loss + options.weight * self.mask.penalty() if self._kept() > options.share else loss

    @torch.no_grad()
    def _kept(self) -> float:
        """The share of the Gaussians that the masks would keep as they are."""
        return float(torch.cat([self.mask.stays(logits) for logits in self.mask.logits]).float().mean())

    def configure_optimizers(self) -> Optimizer:
        # The sigmoid's slope falls e-fold a logit: a long memory of what it was would bring the logits to a halt.
        return Adam(self.mask.parameters(), lr=self.options.rate, betas=(0.9, 0.95))
