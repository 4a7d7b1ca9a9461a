"""Win back what compression cost, by gradients: a smaller scene learns to look like the original's own renders.

No photographs are needed, because the original is the teacher; where there are some, they join its renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compress3d.splats.parameters import LearningRates
from compress3d.splats.pictures import Pictures
from compress3d.splats.rounding import Rounding
from compress3d.splats.scene import SplatScene
from secateur.console import Report, silent

if TYPE_CHECKING:
    from secateur.training import FitRecord

RECOVERY = 600
"""Steps of a recovery unless told otherwise; `secateur splat compress --help` says so, too."""

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
        # Lightning takes seconds to import, which a command that recovers nothing need not wait for.
        from compress3d.splats.recovery_module import RecoveryModule
        from secateur.training import Shuffled, fit

        module = RecoveryModule(scene, self, pictures, validation, rounding)
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
