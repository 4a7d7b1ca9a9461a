"""Section `full`: Stable Diffusion 1.5's whole UNet from its configuration, pruned by a recipe and loaded again."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts import Job

import diffusion
from denoisers.settings import Settings
from diffusion.inputs import example_inputs
from diffusion.models import load_model
from diffusion.prune import prune
from diffusion.recipe import Budget, Calibration, DiffusionRecipe, Judging, Model, Units
from secateur.console import Report, stretch
from secateur.importance import Magnitude
from secateur.metrics.size import bytes_of
from secateur.surgery.cost import count_macs, count_params, measure_latency, run_example

HOW = (
    "Random weights of seed 0 in float32, so that times and sizes are those of the real network and its pictures are "
    "noise. A recipe takes a fifth of the parameters by magnitude: heads, neurons, and inner channels of resnets. "
    "Latency is that of a forward of one sample of 64x64 latents and 77 tokens: the least of 3 of each, in turns. The "
    "difference is that of the saved network, loaded again, from the one in memory."
)
SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_ROUNDS = 3


def jobs(settings: Settings) -> dict[str, Job]:
    """One part: of what no demo model stands for."""
    return {"SD 1.5: 20%": partial(_pruned, "fashion-unet" if settings.quick else SD)}


def _pruned(model: str, report: Report, folder: Path) -> dict[str, Any]:
    recipe = DiffusionRecipe(
        Model(model, random_weights=True, device="cpu"),
        Units(("heads", "neurons", "channels")),
        Magnitude(2.0),
        Budget(remove=0.2, cost="params"),
        Calibration(count=1, steps=1, batch_size=1),
        evaluation=Judging(samples=1, steps=1, batch_size=1, shown=1, repeats=1),
    )
    small, record = prune(recipe, folder / "pruned", stretch(report, 0.0, 0.5))
    report(0.6, "loading again")
    inputs = example_inputs(small.module, batch=1)
    loaded = diffusion.load(folder / "pruned")
    with torch.no_grad():
        expected, found = (run_example(network, inputs).sample for network in (small.module, loaded))
    difference = float((expected - found).abs().max())
    del small, expected, found
    gc.collect()
    report(0.75, "timing")
    dense = load_model(model, random_weights=True).network
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    for _ in range(_ROUNDS):
        for name, network in (("dense", dense), ("pruned", loaded)):
            times[name].append(measure_latency(network, inputs, repeats=1).minimum_ms)
    rows = [
        {
            "model": name,
            "params": count_params(network),
            "macs": count_macs(network, inputs),
            "bytes": 4 * count_params(network),
            "latency_ms": min(times[name]),
        }
        for name, network in (("dense", dense), ("pruned", loaded))
    ]
    return {
        "how": HOW,
        "rows": rows,
        "speedup": min(times["dense"]) / min(times["pruned"]),
        "folder_bytes": bytes_of(folder / "pruned"),
        "difference_after_loading": difference,
        "seconds": record.seconds,
    }
