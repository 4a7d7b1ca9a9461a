"""Training a field from photographs: `train(capture)`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss
from torch.optim import Optimizer

from compress3d.captures import Capture
from compress3d.nerf.bounds import box_of, possible_cells
from compress3d.nerf.evaluate import Quality, judge_trained
from compress3d.nerf.field import Field, new_field
from compress3d.nerf.levels import grid_levels
from compress3d.nerf.march import Stride
from compress3d.nerf.occupancy import step_of
from compress3d.nerf.pixels import draw_pixels, on_device
from compress3d.nerf.rays import Box
from compress3d.nerf.render import render_rays, trace
from compress3d.training import plain_settings, spared
from secateur.console import Report, silent, stretch
from secateur.metrics.speed import Speed
from secateur.report.notebook import table_html
from secateur.report.record import Machine, Steps, describe_machine, package_versions
from secateur.training import FitRecord, exponential_decay, fit, generator_at

STEPS = 10_000

PACKAGES = ("secateur", "torch", "numpy", "numba", "lightning")
_WATCHED_PIXELS = 8192
_FEWEST_RAYS, _MOST_RAYS = 64, 1 << 17
_OCCUPANCY_EVERY, _OCCUPANCY_SAMPLES, _WARM_UPDATES = 16, 1 << 16, 4
_HUBER = 0.1


@dataclass(frozen=True, slots=True)
class Training:
    """How a field is trained. What is not said otherwise is as in Instant NGP (arXiv 2201.05989, section 5.4).

    Its grid and networks are small by default, for a CPU.

    Args:
        levels: of the grid, L.
        features: of a row, F.
        log2_table: the most rows of a level, as a power of two.
        lowest_resolution: cells a side of the first level.
        highest_resolution: cells a side of the last.
        hidden: neurons of a hidden layer.
        color_layers: hidden layers of the colour network.
        occupancy: cells a side of the occupancy grid.
        steps_across: samples that a ray through the cube's diagonal would have.
        cone: growth of the steps with the distance; 0: they are all as long.
        samples: of a step, about: as many rays are drawn as have so many samples.
        rate: of learning, at the start; falls to `final_rate` of that, exponentially.
        final_rate: share of the rate at the end.
        decay: weight decay of the networks.
        loss: "huber" with a delta of 0.1, or "l2".
        random_background: show a new colour behind each ray, so that none is learned. Photographs without alpha keep
            the capture's.
        ema: decay of an average of the weights that is kept at the end; None: none.
        watch_every: share of the run between the PSNRs that are reported as it goes.
        box: the cube of the world that the field fills; None: found from cameras and silhouettes.
        seed: of all that is random.

    Raises:
        ValueError: an option is out of range.
    """

    levels: int = 8
    features: int = 4
    log2_table: int = 17
    lowest_resolution: int = 16
    highest_resolution: int = 512
    hidden: int = 64
    color_layers: int = 1
    occupancy: int = 128
    steps_across: int = 512
    cone: float = 0.0
    samples: int = 1 << 16
    rate: float = 1e-2
    final_rate: float = 0.03
    decay: float = 1e-6
    loss: Literal["huber", "l2"] = "huber"
    random_background: bool = True
    ema: float | None = None
    watch_every: float = 0.02
    box: Box | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 32 <= self.steps_across <= 1 << 14:
            raise ValueError(f"steps_across must be 32 to {1 << 14}, got {self.steps_across}")
        if not _FEWEST_RAYS <= self.samples <= 1 << 22:
            raise ValueError(f"samples must be {_FEWEST_RAYS} to {1 << 22}, got {self.samples}")
        if not self.rate > 0 or not 0 < self.final_rate <= 1 or not self.decay >= 0:
            raise ValueError(
                f"rate must be above 0, final_rate in (0, 1], decay at least 0, got {self.rate}, {self.final_rate} and "
                f"{self.decay}"
            )
        if self.loss not in ("huber", "l2"):
            raise ValueError(f"loss must be 'huber' or 'l2', got {self.loss!r}")
        if not 0 < self.watch_every <= 1:
            raise ValueError(f"watch_every must be in (0, 1], got {self.watch_every}")

    @property
    def stride(self) -> Stride:
        """Of the rays."""
        step = step_of(self.occupancy, self.steps_across)
        return Stride(step, self.cone, max(step, math.sqrt(3) / 128))


@dataclass(frozen=True, slots=True)
class TrainRecord:
    """What a training did.

    Args:
        capture: name of the photographs.
        bytes: of the field in memory, all that it needs to render.
        speed: of rendering a view.
        quality: against the photographs of the test split, which nothing has looked at before; None without any.
        fit: the loss as it went.
        watched: (step, seconds, PSNR in dB of pixels of `watched_views`).
        watched_views: which photographs those are: "held-out training views", which training leaves out, or "training
            views" where there are too few to spare.
        rays: that were trained on, in all.
        samples: along them, in all, of those that light reached.
        occupied: share of the cells that rays look into.
        skipped: photographs that the capture lists but does not have.
        seconds: time by step.
        machine: where it ran.
        versions: of the packages that matter.
        options: the settings.
    """

    capture: str
    bytes: int
    speed: Speed
    quality: Quality | None
    fit: FitRecord
    watched: tuple[tuple[int, float, float], ...]
    watched_views: str
    rays: int
    samples: int
    occupied: float
    skipped: int
    seconds: dict[str, float]
    machine: Machine
    versions: dict[str, str]
    options: dict[str, object]

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        from compress3d.nerf.tables import training_table  # which names this class

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
) -> tuple[Field, TrainRecord]:
    """Train a field on the training photographs of a capture, and judge it by those of the test split.

    Args:
        capture: the posed photographs.
        steps: of about `training.samples` samples each.
        training: how; `Training()` when None.
        device: where it is trained, and the field is in the end: "cpu", or "cuda" with the photographs in its memory.
        checkpoint: file that is written as training goes, when it is stopped by Ctrl-C or SIGTERM, and at the end.
        resume: go on from `checkpoint` if there is one, to the same end.
        report: told how much is done, with loss and PSNR.

    Returns:
        the field and the record.

    Raises:
        ValueError: there are no training photographs or no steps, or the checkpoint is that of another run.
        KeyboardInterrupt: Ctrl-C, after the step that it struck; says where the checkpoint is.
    """
    training = training or Training()
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    clock = Steps()
    with clock("start"):
        module = FieldTraining(capture, training, steps, device=device)
    record = fit_field(module, steps, checkpoint, resume, stretch(report, 0.0, 0.98))
    clock.seconds["train"] = record.seconds
    field = module.field
    with clock("judge"):
        quality, speed = judge_trained(field, capture, stretch(report, 0.98, 1.0))
    return field, TrainRecord(
        capture=capture.name,
        bytes=field.bytes,
        speed=speed,
        quality=quality,
        fit=record,
        watched=tuple(module.watched),
        watched_views=module.watched_views,
        rays=module.total_rays,
        samples=module.total_samples,
        occupied=field.occupancy.share,
        skipped=capture.skipped,
        seconds=clock.seconds,
        machine=describe_machine(),
        versions=package_versions(*PACKAGES),
        options={"steps": steps, "device": str(device), "photographs": len(module.seen), **plain_settings(training)},
    )


def fit_field(
    module: FieldTraining,
    steps: int,
    checkpoint: Path | None,
    resume: bool,
    report: Report,
    seconds: float = 60.0,
) -> FitRecord:
    """The fit of `train`, with a checkpoint every so many seconds."""
    capture = module.capture
    return fit(
        module,
        _StepNumbers(),
        steps=steps,
        seed=module.settings.seed,
        ema=module.settings.ema,
        checkpoint=checkpoint,
        checkpoint_seconds=seconds,
        resume=resume,
        identity={
            **plain_settings(module.settings),
            **module.identity(),
            "capture": capture.name,
            "size": [capture.cameras.width, capture.cameras.height],
            "names": sha256("\n".join(capture.names[index] for index in module.seen).encode()).hexdigest(),
        },
        report=lambda done, doing: report(done, f"{doing}, {module.standing}" if doing else module.standing),
    )


class _StepNumbers:
    """What a step sees depends on how many rays the last one took: the module draws them itself, by its number."""

    def batch_at(self, step: int, /) -> Int64[Tensor, ""]:
        return torch.tensor(step)


class FieldTraining(lightning.LightningModule):
    """Random pixels of all training photographs, as many a step as have the wished number of samples.

    Args:
        capture: the posed photographs.
        training: how.
        steps: of the run.
        field: to go on from, where it is; None: a new one, as `training` says.
        device: where a new one is trained, and begins as on any other.
    """

    def __init__(
        self,
        capture: Capture,
        training: Training,
        steps: int,
        field: Field | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.automatic_optimization, self.settings = False, training
        self.seen, watched = spared(capture.train.tolist())
        self.watched_views = "held-out training views" if watched else "training views"
        self.watched: list[tuple[int, float, float]] = []
        self.field = self._new_field(capture) if field is None else field
        self.to(torch.device(device) if field is None else field.device)
        self.capture = on_device(capture, self.device)
        self.rays_per_step = max(_FEWEST_RAYS, training.samples // 32)
        self.total_rays = self.total_samples = 0
        self._every = max(1, round(training.watch_every * steps))
        self._rate = exponential_decay(training.final_rate, steps)
        random = generator_at(training.seed, steps + 1)
        self._watched_pixels = draw_pixels(self.capture, torch.tensor(watched or self.seen), _WATCHED_PIXELS, random)
        self._seconds, self._started = 0.0, time.monotonic()

    def _new_field(self, capture: Capture) -> Field:
        how = self.settings
        box = how.box or box_of(capture)
        levels = grid_levels(how.levels, how.log2_table, how.lowest_resolution, how.highest_resolution)
        field = partial(new_field, hidden=how.hidden, color_layers=how.color_layers, seed=how.seed)
        cells = possible_cells(capture.subset(self.seen), box, how.occupancy)
        return field(box, how.stride, levels, how.features, occupancy=cells)

    def identity(self) -> dict[str, object]:
        """Plain values beside the settings that a checkpoint must agree with to be resumed."""
        return {}

    @property
    def standing(self) -> str:
        """Where it stands, for whoever watches: "PSNR 27.1 of held-out training views"."""
        return f"PSNR {self.watched[-1][2]:.2f} of {self.watched_views}" if self.watched else "starting"

    @property
    def seconds(self) -> float:
        """How long it has been trained, with the runs that this one resumes."""
        return self._seconds + time.monotonic() - self._started

    def on_train_start(self) -> None:
        self._started = time.monotonic()

    def configure_optimizers(self) -> Optimizer:
        networks = [*self.field.density.parameters(), *self.field.color.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [self.field.table]},
            {"params": networks, "weight_decay": self.settings.decay},
        ]
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.Adam(groups, self.settings.rate, (0.9, 0.99), 1e-15, fused=fused)

    def training_step(self, batch: Int64[Tensor, ""], index: int) -> Tensor:
        settings, random = self.settings, generator_at(self.settings.seed, index)
        if index % _OCCUPANCY_EVERY == 0:
            self._renew_occupancy(index, random)
        pixels = draw_pixels(self.capture, torch.tensor(self.seen), self.rays_per_step, random)
        background = pixels.backgrounds(random if settings.random_background else None)
        shift = torch.rand(len(pixels), generator=random)
        seen, samples = trace(self.field, pixels.rays(self.field.box), shift)
        weights = pixels.weights()
        ours, wanted = seen.over(background) * weights, pixels.colors(background) * weights
        loss = mse_loss(ours, wanted) if settings.loss == "l2" else huber_loss(ours, wanted, delta=_HUBER) / _HUBER

        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * self._rate(index)
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._adapt(len(pixels), samples)
        return loss.detach()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self._every == 0:
            self.watched.append((batch_idx + 1, self.seconds, self._watch()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["field_training"] = {
            "rays_per_step": self.rays_per_step,
            "total_rays": self.total_rays,
            "total_samples": self.total_samples,
            "watched": self.watched,
            "seconds": self.seconds,
            "box": [*self.field.box.low, self.field.box.side],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["field_training"]
        self.rays_per_step, self._seconds = state["rays_per_step"], state["seconds"]
        x, y, z, side = state["box"]
        self.field.box = Box((x, y, z), side)
        self.total_rays, self.total_samples = state["total_rays"], state["total_samples"]
        self.watched = [(step, seconds, decibels) for step, seconds, decibels in state["watched"]]

    def _renew_occupancy(self, index: int, random: torch.Generator) -> None:
        updates = index // _OCCUPANCY_EVERY
        samples = None if updates and updates <= _WARM_UPDATES else _OCCUPANCY_SAMPLES
        if updates:
            self.field.occupancy.update(self._density, self.field.stride.step, random, samples)

    @torch.no_grad()
    def _density(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        return torch.cat([self.field.densities(self.field.features(part)) for part in positions.split(1 << 16)])

    def _adapt(self, rays: int, samples: int) -> None:
        """Rays of the next step: as many as would have had the wished samples in this one, within twice or half."""
        self.total_rays += rays
        self.total_samples += samples
        factor = min(max(self.settings.samples / max(samples, 1), 0.5), 2.0)
        self.rays_per_step = min(max(round(rays * factor), _FEWEST_RAYS), _MOST_RAYS)

    @torch.no_grad()
    def _watch(self) -> float:
        """PSNR of the watched pixels on the capture's background, in dB."""
        pixels = self._watched_pixels
        background, weights = pixels.backgrounds(None), pixels.weights()
        ours = render_rays(self.field, pixels.rays(self.field.box)).over(background).clamp(0, 1)
        error = ((ours - pixels.colors(background)).square() * weights).sum() / (3 * weights.sum().clamp_min(1e-6))
        return float(-10 * torch.log10(error.clamp_min(1e-12)))
