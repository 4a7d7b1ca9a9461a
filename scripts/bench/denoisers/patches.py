"""Section `patches`: DistriFusion and PCPP, two processes with half of the rows each, beside one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from denoisers.settings import Settings
from denoisers.subjects import subject
from diffusion.patch_parallel import Staleness
from diffusion.patch_parallel.measuring import measure_patches
from diffusion.recipe import Calibration
from secateur.console import Report

HOW = (
    "Two processes (gloo) share each call of the dense model by rows of the latents, for 20 steps of DDIM and 8 "
    "samples. warmup: synchronous steps at the start, null: all; then each patch sees what the other's keys and values "
    "were at the step before (DistriFusion), or the nearest part of them (PCPP, context). The error is the norm of the "
    "difference to the latents of one process, over their norm. Bytes are those that one process received, of the "
    "whole trajectory; those overlapped travel while it works. The classes or prompts take turns. The clothes' "
    "UNet draws 32x32 here."
)


SIZES: Mapping[str, int | None] = {"digits-dit": None, "digits-unet": None, "fashion-unet": 32}
"""Rows of the latents, where the model's own do not divide over two processes: 28 are 7 on a UNet's coarsest grid. The
clothes' DiT has 7 rows of tokens, and cannot have others."""


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a model."""
    return {name: partial(_model, name, settings) for name in settings.models if name in SIZES}


def _model(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    report(0.0, f"{name}: shared by two processes")
    shares, warmups, steps = ((0.5,), (1,), 2) if settings.quick else ((0.25, 0.5, 0.75), (1, 2, 5, 10), 20)
    ways = [Staleness(each, share) for each in warmups for share in (None, *shares)]
    asked = tuple(str(each) for each in subject(name).asked)
    calibration = Calibration(asked, steps=steps, size=SIZES[name])
    found = measure_patches(name, [Staleness(warmup=None), *ways], calibration, samples=8)
    rows = [asdict(row) for row in found.rows]
    return {"how": HOW, "ranks": found.ranks, "steps": found.steps, "samples": found.samples, "rows": rows}
