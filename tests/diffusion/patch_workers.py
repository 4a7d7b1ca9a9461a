"""What each of several processes runs in the tests of patch parallelism; results go into a file a rank."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusion.patch_parallel import Staleness, patch_parallel
from diffusion.units import prunable
from tests.diffusion.models import inputs, random_model

STEPS = 3
SYNCHRONOUS = Staleness(warmup=None)
KINDS = ("halo", "attention", "group_norm", "output")


@cache
def models() -> dict[str, tuple[str, nn.Module]]:
    """Name -> family, and a model whose steps are small, so that a trajectory stays tame."""
    built = {
        "unet2d": ("unet2d", random_model("unet2d")),
        "unpadded": ("unet2d", random_model("unet2d", downsample_padding=0)),
        "unet": ("unet", random_model("unet")),
        "dit": ("dit", random_model("dit")),
        "sd3": ("sd3", random_model("sd3")),
    }
    target = prunable(built["dit"][1])
    keep = {group.name: torch.arange(group.size) % 2 == 0 for group in target.groups()}
    return built | {"pruned": ("dit", target.cut(keep).module)}


def trajectory(family: str, model: nn.Module, steps: int = STEPS) -> Tensor:
    """Latents after some steps of a crude sampler."""
    arguments: dict[str, Any] = inputs(family)
    name = next(iter(arguments))
    generator = torch.Generator().manual_seed(5)
    arguments[name] = torch.randn(arguments[name].shape, generator=generator)
    with torch.no_grad():
        for step in range(steps):
            arguments["timestep"] = torch.full((2,), 100 - 10 * step)
            predicted = model(**arguments, return_dict=False)[0]
            arguments[name] = arguments[name] - 0.1 * predicted / predicted.std()
    return arguments[name]


def work(rank: int, ranks: int, folder: str) -> None:
    """Run everything as one of the ranks; few steps, because each message waits for the other process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    built, found = models(), {}

    def share(name: str, key: str, staleness: Staleness, steps: int = STEPS) -> None:
        with patch_parallel(built[name][1], staleness) as traffic:
            found[f"{name} {key}"] = trajectory(*built[name], steps)
        found[f"{name} {key} waited"] = totals(traffic.waited)
        found[f"{name} {key} overlapped"] = totals(traffic.overlapped)

    for name in built:
        share(name, "synchronous", SYNCHRONOUS, steps=1)
    for warmup in range(1, STEPS + 1):
        share("dit", f"warmup {warmup}", Staleness(warmup=warmup))
    for context in (0.0, 0.25, 0.5, 1.0):
        share("dit", f"context {context}", Staleness(warmup=1, context=context))
    share("unet", "displaced", Staleness(warmup=1), steps=2)
    with patch_parallel(built["dit"][1], Staleness(warmup=2)):
        trajectory(*built["dit"], steps=1)
        found["dit again"] = trajectory(*built["dit"])
    found["dit untouched"] = trajectory(*built["dit"])
    save_file(found, Path(folder) / f"{rank}.safetensors")
    dist.destroy_process_group()


def totals(calls: list[Counter[str]]) -> Tensor:
    """(kinds, calls) bytes."""
    return torch.tensor([[call[kind] for call in calls] for kind in KINDS])
