"""Section `chair`: one training by the default recipe, judged after 30 minutes, after 90, and at its end."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import zstandard
from parts import Job

from compress3d.captures import Capture
from compress3d.nerf.evaluate import quality_to_photographs
from compress3d.nerf.field import Field
from compress3d.nerf.files import load_field, save_field
from compress3d.nerf.render import render
from compress3d.nerf.train import FieldTraining, Training, fit_field
from fields.settings import Settings
from secateur.console import Report, stretch
from secateur.metrics.speed import measure_speed

HOW = (
    "The chair at 400x400, `secateur nerf train` as it is by default. A row is the field as it was after so many "
    "minutes of training, by the clock, without judging and checkpoints, on all test views; the last is trained. "
    "Processor seconds are those of the same steps: less than twice the others where other work had the processors."
)
BARS = {30: 30.0, 90: 32.0}
"""Minutes -> dB that the chair must have on its test views."""


def jobs(settings: Settings) -> dict[str, Job]:
    """One training."""
    return {"training": partial(training, settings)}


def training(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    """Rows by minutes, and what the trained field takes."""
    module, steps = _trained(settings, stretch(report, 0.0, 0.95))
    path, capture = field_path(settings), settings.capture
    speed = measure_speed(lambda _: render(module.field, capture.cameras, settings.judging[0]), frames=1, repeats=5)
    rows = [*module.rows, module.row("end", capture.test.tolist())]
    return {
        "how": HOW,
        "bars": bars(rows),
        "rows": rows,
        "curve": module.watched,
        "watched_views": module.watched_views,
        "steps": steps,
        "rays": module.total_rays,
        "rays_per_second": module.total_rays / module.seconds_of_training,
        "samples_per_second": module.total_samples / module.seconds_of_training,
        "view": asdict(speed),
        "field_bytes": module.field.bytes,
        "file_bytes": path.stat().st_size,
        "zstd_bytes": zipped_bytes(path),
        "occupied": module.field.occupancy.share,
    }


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How good the field was after so many minutes, or at its end where that came first, beside what is wanted."""
    found = []
    for minutes, wanted in BARS.items():
        at = next((row for row in rows if row["minutes"] == minutes), rows[-1])
        found.append({"minutes": minutes, "wanted": wanted, "psnr": at["psnr"], "met": at["psnr"] >= wanted})
    return found


def trained_field(settings: Settings, report: Report) -> Field:
    """The chair's field: the one that the options name, or the bench's own, trained where it is not there yet.

    Raises:
        FileNotFoundError: the options name one that is absent.
    """
    if settings.field is not None:
        return load_field(settings.field)
    if not field_path(settings).exists():
        _trained(settings, report)
    return load_field(field_path(settings))


def field_path(settings: Settings) -> Path:
    """Where the bench keeps the chair's field."""
    return settings.folder / f"chair-{settings.short(settings.steps)}.safetensors"


def zipped_bytes(path: Path) -> int:
    """Of a file, packed by zstd as it is."""
    return len(zstandard.ZstdCompressor(level=19).compress(path.read_bytes()))


class WatchedByTheClock(FieldTraining):
    """The training of a field that is judged after so many minutes; judging does not count.

    Args:
        capture: the posed photographs.
        training: how.
        steps: of the run.
        views: photographs that it is judged by.
    """

    def __init__(self, capture: Capture, training: Training, steps: int, views: list[int]) -> None:
        super().__init__(capture, training, steps)
        self.views = views
        self.rows: list[dict[str, Any]] = []
        self.seconds_of_training = self.processor_seconds = 0.0
        self._clocks = (0.0, 0.0)
        self._step = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._clocks = (time.perf_counter(), time.process_time())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.seconds_of_training += time.perf_counter() - self._clocks[0]
        self.processor_seconds += time.process_time() - self._clocks[1]
        self._step = batch_idx + 1
        for minutes in BARS:
            if self.seconds_of_training >= 60 * minutes and minutes not in [row["minutes"] for row in self.rows]:
                self.rows.append(self.row(minutes, self.views))

    def row(self, minutes: int | str, views: list[int]) -> dict[str, Any]:
        """How good the field is now."""
        quality = quality_to_photographs(self.field, self.capture, views)
        return {
            "minutes": minutes,
            "step": self._step,
            "seconds": self.seconds_of_training,
            "processor_seconds": self.processor_seconds,
            "psnr": quality.mean_psnr,
            "ssim": quality.mean_ssim,
            "views": len(views),
            "rays": self.total_rays,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["by_the_clock"] = {
            "rows": self.rows,
            "seconds": self.seconds_of_training,
            "processor_seconds": self.processor_seconds,
            "step": self._step,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["by_the_clock"]
        self.rows, self._step = state["rows"], state["step"]
        self.seconds_of_training, self.processor_seconds = state["seconds"], state["processor_seconds"]


def _trained(settings: Settings, report: Report) -> tuple[WatchedByTheClock, int]:
    """The training, gone on with where it was stopped; the field is written, and the checkpoint stays."""
    capture, steps = settings.capture, settings.short(settings.steps)
    module = WatchedByTheClock(capture, settings.training, steps, capture.test.tolist())
    path = field_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    fit_field(module, steps, path.with_suffix(".ckpt"), True, report)
    save_field(module.field, path)
    return module, steps
