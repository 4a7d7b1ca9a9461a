"""Training a splat scene from photographs: `train(capture)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer

from compress3d.cameras import Cameras
from compress3d.captures import Capture
from compress3d.photometric import photometric_loss
from compress3d.splats.densify import Adaptive, Densifier, DensityControl
from compress3d.splats.evaluate import PACKAGES as EVALUATION_PACKAGES
from compress3d.splats.evaluate import Quality, SceneFile
from compress3d.splats.initialise import initial_scene
from compress3d.splats.parameters import LearningRates, TrainableScene
from compress3d.splats.photographs import psnr_to_photograph, quality_to_photographs
from compress3d.splats.pictures import counted
from compress3d.splats.pruning import PruneAt
from compress3d.splats.rasterize import rasterization, render, render_each
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene
from compress3d.training import plain_settings, spared
from secateur.console import Report, silent, stretch
from secateur.metrics.speed import measure_speed
from secateur.report.notebook import table_html
from secateur.report.record import Machine, Steps, describe_machine, package_versions
from secateur.training import FitRecord, Shuffled, exponential_decay, fit

PACKAGES = (*EVALUATION_PACKAGES, "lightning", "gsplat")
STEPS = 15_000

_CAPS = {"cpu": 60_000, "cuda": 1_000_000}
_WATCH_NO_OFTENER = 100
_TIMED_FRAMES, _TIMED_REPEATS = 4, 3


@dataclass(frozen=True, slots=True)
class Training:
    """How a scene is trained. Moments are shares of the run, so that a short run does all that a long one does.

    The defaults are those of 3DGS (Kerbl et al. 2023; gsplat's simple_trainer), with photographs that start small.

    Args:
        sh_degree: 0 to 3, of the trained scene.
        sh_every: share of the run after which one more degree is trained.
        resolutions: (share of the run from which, factor of width and height), the first from 0.
        density: where Gaussians are born and die.
        pruning: what is removed for being worth little, besides.
        max_gaussians: the most that there may be; None: 60,000 on a CPU, where a step should take a tenth of a second,
            and a million on a GPU.
        start_gaussians: the most that training starts from.
        rates: of learning.
        means_decay: factor of the means' rate at the end, reached exponentially.
        dssim: weight of the structural part of the loss.
        random_background: show a new colour behind transparent pixels in each step, so that none is learned.
            Photographs without alpha keep the capture's.
        antialiased: train for the mip rasteriser (Yu et al. 2024).
        watch_every: share of the run between the PSNRs that are reported as it goes; 100 steps at least.
        seed: of all that is random.

    Raises:
        ValueError: an option is out of range.
    """

    sh_degree: int = 3
    sh_every: float = 0.1
    resolutions: tuple[tuple[float, float], ...] = ((0.0, 0.25), (0.1, 0.5), (0.35, 1.0))
    density: DensityControl = field(default_factory=Adaptive)
    pruning: PruneAt | None = None
    max_gaussians: int | None = None
    start_gaussians: int = 20_000
    rates: LearningRates = field(default_factory=LearningRates)
    means_decay: float = 0.01
    dssim: float = 0.2
    random_background: bool = True
    antialiased: bool = False
    watch_every: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sh_degree not in SH_COEFFICIENTS:
            raise ValueError(f"sh_degree must be 0 to 3, got {self.sh_degree}")
        if not self.resolutions or self.resolutions[0][0] != 0 or list(self.resolutions) != sorted(self.resolutions):
            raise ValueError(f"resolutions must be in order of their moments, the first from 0, got {self.resolutions}")
        for name in ("max_gaussians", "start_gaussians"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dssim <= 1:
            raise ValueError(f"dssim must be between 0 and 1, got {self.dssim}")
        if self.sh_every < 0 or not 0 < self.watch_every <= 1:
            raise ValueError(
                f"sh_every must not be negative and watch_every in (0, 1], got {self.sh_every} and {self.watch_every}"
            )

    def degree_at(self, progress: float) -> int:
        """Of the spherical harmonics, at a share of the run."""
        return self.sh_degree if self.sh_every == 0 else min(self.sh_degree, int(progress / self.sh_every))

    def factor_at(self, progress: float) -> float:
        """Of width and height, at a share of the run."""
        return next(factor for moment, factor in reversed(self.resolutions) if moment <= progress)

    def cap(self, device: torch.device) -> int:
        """The most Gaussians there."""
        return _CAPS.get(device.type, _CAPS["cpu"]) if self.max_gaussians is None else self.max_gaussians


@dataclass(frozen=True, slots=True)
class TrainRecord:
    """What a training did.

    Args:
        capture: name of the photographs.
        scene: the scene, and its file once there is one.
        quality: against the photographs of the test split, which nothing has looked at before; None without any.
        fit: the loss as it went.
        watched: (step, mean PSNR in dB of `watched_views`).
        watched_views: which photographs those are: "held-out training views", which training leaves out, or "training
            views" where there are too few to spare.
        skipped: photographs that the capture lists but does not have.
        seconds: time by step.
        machine: where it ran.
        versions: of the packages that matter.
        options: the settings.
    """

    capture: str
    scene: SceneFile
    quality: Quality | None
    fit: FitRecord
    watched: tuple[tuple[int, float], ...]
    watched_views: str
    skipped: int
    seconds: dict[str, float]
    machine: Machine
    versions: dict[str, str]
    options: dict[str, object]

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        from compress3d.splats.tables import training_table  # which names this class

        return table_html(training_table(self))


def train(
    capture: Capture,
    *,
    steps: int = STEPS,
    training: Training | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Report = silent,
) -> tuple[SplatScene, TrainRecord]:
    """Train a scene on the training photographs of a capture, and judge it by those of the test split.

    Args:
        capture: the posed photographs.
        steps: of one photograph each; at 400x400 with 28,000 Gaussians one takes a tenth of a second on a CPU core.
        training: how; `Training()` when None.
        device: "cpu", or "cuda" with gsplat's kernels.
        checkpoint: file that is written as training goes, when it is stopped by Ctrl-C or SIGTERM, and at the end.
        resume: go on from `checkpoint` if there is one, to the same end.
        report: told how much is done, with loss, PSNR and number of Gaussians.

    Returns:
        the scene, on the CPU, and the record.

    Raises:
        ValueError: there are no training photographs or no steps, or the checkpoint is that of another run.
        KeyboardInterrupt: Ctrl-C, after the step that it struck; says where the checkpoint is.
    """
    training = training or Training()
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    clock = Steps()
    with clock("start"):
        module = SplatTraining(capture, training, steps, torch.device(device))
    record = _fit(module, steps, checkpoint, resume, stretch(report, 0.0, 0.98))
    clock.seconds["train"] = record.seconds
    scene = module.splats.frozen()
    views = capture.test.tolist()
    with clock("judge"):
        quality = quality_to_photographs(scene, capture, views, stretch(report, 0.98, 1.0)) if views else None
        cameras = capture.cameras[capture.test if views else capture.train]
        speed = measure_speed(
            lambda frame: render(scene, cameras[frame], capture.background),
            frames=min(_TIMED_FRAMES, len(cameras)),
            repeats=_TIMED_REPEATS,
        )
    scene = scene.to("cpu")
    return scene, TrainRecord(
        capture=capture.name,
        scene=SceneFile.in_memory(scene, speed),
        quality=quality,
        fit=record,
        watched=tuple(module.watched),
        watched_views=module.watched_views,
        skipped=capture.skipped,
        seconds=clock.seconds,
        machine=describe_machine(),
        versions=package_versions(*PACKAGES),
        options={"steps": steps, "device": str(device), "photographs": len(module.seen), **plain_settings(training)},
    )


def _fit(module: SplatTraining, steps: int, checkpoint: Path | None, resume: bool, report: Report) -> FitRecord:
    capture = module.capture
    size = [capture.cameras.width, capture.cameras.height]
    return fit(
        module,
        Shuffled(len(module.seen), 1, module.settings.seed),
        steps=steps,
        seed=module.settings.seed,
        checkpoint=checkpoint,
        resume=resume,
        identity={
            **plain_settings(module.settings),
            "capture": capture.name,
            "size": size,
            "photographs": len(module.seen),
            "names": sha256("\n".join(capture.names[index] for index in module.seen).encode()).hexdigest(),
        },
        report=lambda done, doing: report(done, f"{doing}, {module.standing}" if doing else module.standing),
    )


class SplatTraining(lightning.LightningModule):
    """One step a photograph, with an optimiser a tensor, which density control edits together with the tensor.

    Args:
        capture: the posed photographs.
        training: how.
        steps: of the run.
        device: where the scene is.
    """

    def __init__(self, capture: Capture, training: Training, steps: int, device: torch.device) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.capture, self.settings, self.steps = capture, training, steps
        self.seen, watched = spared(capture.train.tolist())
        self.watched_views = "held-out training views" if watched else "training views"
        self._watched_indices = watched or self.seen[:: max(1, len(self.seen) // 4)][:4]
        self.watched: list[tuple[int, float]] = []
        cap = training.cap(device)
        start = initial_scene(
            replace(capture, train=torch.tensor(self.seen, dtype=torch.int64)),
            min(training.start_gaussians, cap),
            sh_degree=training.sh_degree,
            antialiased=training.antialiased,
            seed=training.seed,
        )
        self.splats = TrainableScene(start)
        self.to(device)
        seen = capture.subset(self.seen)
        self._photographs = {
            factor: _on(device, seen.resized(factor=factor))
            for factor in {factor for _, factor in training.resolutions}
        }
        self._extent = seen.cameras.extent
        self._densifier = Densifier(training.density, steps, cap, self._extent)
        self._prunes = () if training.pruning is None else training.pruning.moments(steps)
        self._decay = exponential_decay(training.means_decay, steps)

    @property
    def standing(self) -> str:
        """Where it stands, for whoever watches: "PSNR 27.1 of held-out training views, 23,411 Gaussians"."""
        count = f"{len(self.splats.scene()):,} Gaussians"
        return f"PSNR {self.watched[-1][1]:.2f} of {self.watched_views}, {count}" if self.watched else count

    def configure_optimizers(self) -> list[Optimizer]:
        return list(self.splats.optimizers(self.settings.rates, self._extent).values())

    def training_step(self, batch: Int[Tensor, " 1"], step: int) -> Tensor:
        settings, progress, index = self.settings, step / self.steps, int(batch[0])
        photographs = self._photographs[settings.factor_at(progress)]
        background = self._background(photographs)
        optimizers = self._optimizers()
        optimizers["means"].param_groups[0]["lr"] = settings.rates.means * self._extent * self._decay(step)

        watches = self._densifier.watches(step + 1)
        image, meta = self._render(photographs.cameras[index], background, settings.degree_at(progress), watches)
        image, target = counted(photographs, index, image, photographs.image(index, background))
        loss = photometric_loss(image, target, settings.dssim)
        penalty = settings.density.penalty(self.splats.scene())
        self.manual_backward(loss if penalty is None else loss + penalty)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._densifier.after_step(self.splats, optimizers, step + 1, meta)
        if step + 1 in self._prunes:
            self._prune(optimizers, last=step + 1 == self._prunes[-1])
        return loss.detach()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = min(self.steps, max(_WATCH_NO_OFTENER, round(self.settings.watch_every * self.steps)))
        if (batch_idx + 1) % every == 0:
            scene = self.splats.frozen()
            decibels = [psnr_to_photograph(scene, self.capture, index) for index in self._watched_indices]
            self.watched.append((batch_idx + 1, sum(decibels) / len(decibels)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["splat_training"] = {"densifier": self._densifier.state_dict(), "watched": self.watched}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["splat_training"]
        self._densifier.load_state_dict(state["densifier"], self.device)
        self.watched = [(step, decibels) for step, decibels in state["watched"]]

    def _optimizers(self) -> dict[str, Optimizer]:
        """By the names of their tensors; Lightning gives them in the order in which they were configured."""
        made = self.optimizers(use_pl_optimizer=False)
        names = [name for name, parameter in self.splats.named_parameters() if parameter.numel()]
        return dict(zip(names, made if isinstance(made, list) else [made], strict=True))

    def _background(self, photographs: Capture) -> Float[Tensor, " 3"]:
        if photographs.alphas is None or not self.settings.random_background:
            return torch.tensor(photographs.background)
        return torch.rand(3)

    def _render(
        self, camera: Cameras, background: Float[Tensor, " 3"], degree: int, watches: bool
    ) -> tuple[Float[Tensor, "H W 3"], dict[str, Any]]:
        """The image of one camera, and what density control needs of it: that costs, so only where it `watches`."""
        scene = self.splats.scene()
        if not watches:
            red, green, blue = background.tolist()
            return next(render_each(scene, camera, (red, green, blue), degree))[0], {}
        colors = torch.cat([scene.sh0, scene.shN[:, : SH_COEFFICIENTS[degree]]], dim=1) if degree else scene.sh0
        images, _, meta = rasterization(
            scene.means, scene.quats, torch.exp(scene.scales), scene.peak_opacities(), colors,
            camera.viewmats.to(self.device), camera.Ks.to(self.device), camera.width, camera.height, sh_degree=degree,
            backgrounds=background[None].to(self.device), absgrad=self._densifier.absolute,
            rasterize_mode="antialiased" if scene.antialiased else "classic",
        )  # fmt: skip
        meta["means2d"].retain_grad()
        return images[0], meta

    def _prune(self, optimizers: Mapping[str, Optimizer], last: bool) -> None:
        assert self.settings.pruning is not None
        keep = self.settings.pruning.keep(self.splats.frozen(), self._photographs_seen())
        self._densifier.keep(self.splats, optimizers, keep)
        if last:
            self._densifier.cap = min(self._densifier.cap, int(keep.sum()))

    def _photographs_seen(self) -> Cameras:
        return self.capture.cameras[torch.tensor(self.seen)]


def _on(device: torch.device, capture: Capture) -> Capture:
    """The photographs on `device`, where they are composited; the cameras stay."""
    if device.type == "cpu":
        return capture
    alphas, masks = (None if tensor is None else tensor.to(device) for tensor in (capture.alphas, capture.masks))
    return replace(capture, images=capture.images.to(device), alphas=alphas, masks=masks)
