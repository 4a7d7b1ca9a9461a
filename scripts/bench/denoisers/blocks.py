"""Section `blocks`: LD-Pruner's operators, and whole blocks in the manner of BK-SDM, without and with training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from meters import peak_bytes_above
from parts import Job
from torch import nn

from denoisers.settings import Settings
from denoisers.subjects import Subject, subject
from diffusion.block_removal import BlockRemoval, remove_blocks, remove_by_score
from diffusion.refit import refit_pointwise
from diffusion.scores import LatentSet, LatentShift
from diffusion.train import block_features
from diffusion.units import Kind
from secateur.allocation import Budget
from secateur.console import Report
from secateur.recovery.distill import Features
from secateur.surgery import Network
from secateur.units import Scores

HOW = (
    "LD-Pruner: every operator is scored by the shift of 64 latents' mean and deviation without it, and the least go "
    "until no more than the rest of the multiply-adds is left. 'blocks': whole transformer blocks, or resnets and "
    "attentions, by the same score; recovery has BK-SDM's features of blocks, too. 'middle': the UNet without its "
    "middle block, as in BK-SDM-Small. 'repaired' fits LD-Pruner's 1x1 stand-ins of convolutions by least squares, "
    "where there are any. The rest is as in the sections one_shot and recovered; 'share' is what was asked for, and "
    "'macs' what came out."
)

METHODS: Mapping[str, Callable[[Subject], tuple[Kind, ...]]] = {
    "LD-Pruner": lambda of: ("operators",),
    "blocks": lambda of: of.blocks,
}


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a model, method and seed."""
    found: dict[str, Job] = {}
    for name in settings.models:
        for seed in settings.seeds:
            for method in METHODS:
                found[f"{name}: {method}: seed {seed}"] = partial(_by_score, name, method, seed, settings)
            if "unet" in name:
                found[f"{name}: middle: seed {seed}"] = partial(_middle, name, seed, settings)
    return found


@lru_cache(maxsize=4)
def _shifts(name: str, kinds: tuple[Kind, ...], seed: int, settings: Settings) -> tuple[Network, Scores, float, Any]:
    of = subject(name)
    network, found = of.network(kinds), list[Scores]()
    trajectories = of.trajectories(seed, settings.latents, settings.steps(of))

    def sample(target: Any, seeds: Sequence[int]) -> torch.Tensor:
        return trajectories.sample(target.module, torch.tensor(seeds))

    latents = LatentSet(sample, tuple(range(settings.latents)), batch_size=64)
    start = time.perf_counter()
    peak = peak_bytes_above(lambda: found.append(LatentShift().score(network, latents)))
    return network, found[0], time.perf_counter() - start, peak


def _by_score(name: str, method: str, seed: int, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of = subject(name)
    report(0.0, f"{name}: {method}: scoring, seed {seed}")
    network, scores, seconds, peak = _shifts(name, METHODS[method](of), seed, settings)
    models: dict[str, nn.Module] = {}
    rows: dict[str, dict[str, Any]] = {}
    for number, share in enumerate(settings.shares):
        report(0.2 + 0.5 * number / len(settings.shares), f"{name}: {method} at {share:.0%}, seed {seed}")
        facts = {"share": share, "seed": seed, "calibration_seconds": seconds, "calibration_peak_bytes": peak}
        try:
            small = remove_by_score(network, scores, Budget(share=1 - share, cost="macs"))
        except ValueError as error:
            rows[f"{share}"] = facts | {"failed": str(error)}
            continue
        facts |= settings.cost(of, small.module) | {"gone": sorted(small.cuts.blocks)}
        features = _features(small) if method == "blocks" else None
        for stage, module in _stages(of, small, seed, settings, features).items():
            models[f"{share} {stage}"] = module
            rows[f"{share} {stage}"] = facts | {"repaired": "repaired" in stage, "recovered": "recovered" in stage}
    dense, figures = settings.judged(of, models, seed)
    return {"how": HOW, "dense": dense, "rows": [row | figures.get(key, {}) for key, row in rows.items()]}


def _stages(
    of: Subject, small: Network, seed: int, settings: Settings, features: Features | None
) -> dict[str, nn.Module]:
    stages = {"cut": small.module}
    last = small
    mended = small.cut({group.name: torch.ones(group.size, dtype=torch.bool) for group in small.groups()})
    data = of.trajectories(seed, settings.latents, settings.steps(of))
    if refit_pointwise(mended, of.dense, [torch.arange(settings.latents)], data.sample):
        stages["repaired"] = mended.module
        last = mended
    terms = [] if features is None else [features]
    recovered = settings.recovered(of, last.module, seed, terms)
    return stages | {"repaired recovered" if last is mended else "recovered": recovered}


def _features(small: Network) -> Features:
    """Of the blocks that stay."""
    every = block_features(small.module)
    gone = {f"network.{name}" for name in small.cuts.blocks}
    return Features(tuple(name for name in every.names if name not in gone), every.weight, every.dim)


def _middle(name: str, seed: int, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of = subject(name)
    report(0.0, f"{name}: without the middle, seed {seed}")
    student = remove_blocks(of.dense, BlockRemoval(layers=False, middle=True))
    recovered = settings.recovered(of, student.model, seed, [student.features()])
    dense, figures = settings.judged(of, {"cut": student.model, "recovered": recovered}, seed)
    cost = {"seed": seed, "repaired": False} | settings.cost(of, student.model)
    rows = [cost | {"recovered": stage == "recovered"} | row for stage, row in figures.items()]
    return {"how": HOW, "dense": dense, "rows": rows}
