"""Section `fox`: photographs of a real thing without alpha, after a short training."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from compress3d.nerf.files import save_field
from compress3d.nerf.train import train
from fields.chair import zipped_bytes
from fields.settings import Settings
from secateur.console import Report

HOW = (
    "The fox at 270x480, 600 steps of 65,536 samples, judged by the photographs of its test split: every eighth. "
    "A short run: the default recipe has 10,000 steps of more samples."
)
STEPS, SAMPLES = 600, 1 << 16


def jobs(settings: Settings) -> dict[str, Job]:
    """One training."""
    return {"short": partial(_short, settings)}


def _short(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    steps = settings.short(STEPS)
    path = settings.folder / f"fox-{steps}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    field, record = train(
        settings.fox_capture,
        steps=steps,
        training=settings.training if settings.quick else replace(settings.training, samples=SAMPLES),
        checkpoint=path.with_suffix(".ckpt"),
        resume=True,
        report=report,
    )
    quality = record.quality
    assert quality is not None
    written = save_field(field, path)
    return {
        "how": HOW,
        "steps": steps,
        "curve": record.watched,
        "rows": [
            {
                "psnr": quality.mean_psnr,
                "ssim": quality.mean_ssim,
                "views": len(quality.psnr),
                "file_bytes": written,
                "zstd_bytes": zipped_bytes(path),
                "rays": record.rays,
                "rays_per_second": record.rays / record.seconds["train"],
                "seconds": record.seconds,
                "view": asdict(record.speed),
                "occupied": record.occupied,
            }
        ],
    }
