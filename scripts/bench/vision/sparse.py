"""Sections `blocks` and `dimap`: weights become 0, block by block or one by one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job
from torch import nn

from secateur.allocation import Budget, allocate_per_group
from secateur.block_sparse import with_blocks
from secateur.console import Report
from secateur.granularity import Weights
from secateur.importance import Lamp, Magnitude
from secateur.recovery.refit import ObsRefit
from secateur.recovery.zeros import HoldZeros
from secateur.selection import keep_top
from secateur.units import Criterion, Keep
from vision.judging import STEPS, cost
from vision.settings import Settings
from vision.subjects import Subject, subject
from vit.dimap import Dimap, linear_weights
from vit.lpvit import LPViT

BLOCKS_HOW = (
    "LPViT on the demo model: blocks of 32 x 32 weights of all linear layers but the classifier go, by the second- "
    "order term of each layer's output, weighed by how much the loss minds it, from 256 training pictures; refitted: "
    "the weights that stay are solved again. Sparsity is the share of the blocks' multiply-adds that is gone. Tuned: "
    "80 steps as in the section static, with the zeros held. Speed is that of the block-sparse model, 32 pictures, "
    "in turns with the dense one. Layers that keep more than the limit of `with_blocks` run as dense ones."
)
DIMAP_HOW = (
    "Single weights of the linear layers of a small Swin that the bench trained become 0; scores are compared over "
    "the whole network, or the same share of each layer goes. Tuned: 80 steps as in the section static, zeros held; "
    "the cut itself sees no data and is the same for all seeds."
)
SPARSITIES = (0.5, 0.7)

LPVITS: Mapping[str, LPViT] = {"LPViT": LPViT(), "LPViT, refitted": LPViT(refit=ObsRefit())}


def block_jobs(settings: Settings) -> dict[str, Job]:
    """One part a method and share."""
    shares = SPARSITIES[:1] if settings.quick else SPARSITIES
    return {f"{name}: {share:.0%}": partial(_blocks, name, share, settings) for share in shares for name in LPVITS}


def _blocks(name: str, sparsity: float, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of, rows = subject("fashion", settings), []
    method = LPVITS[name]
    for number, seed in enumerate(settings.seeds):
        report(number / len(settings.seeds), f"{name} at {sparsity:.0%}, seed {seed}")
        batches = [pixels for pixels, _ in of.calibration(seed, settings)]
        budget = Budget(share=1 - sparsity, cost="macs")
        pruned = method.prune(of.copied(), batches, budget, of.objective(seed, settings))
        tuned = of.trained(copy.deepcopy(pruned.masked), STEPS, seed, settings, [HoldZeros()])
        running = with_blocks(tuned, pruned.keep, method.dense_from)
        facts: dict[str, Any] = {"method": name, "sparsity": sparsity, "seed": seed} | cost(running, of)
        if seed == settings.seeds[0]:
            facts |= settings.speed(running, of.network, of.batch())
        rows.append(facts | {"accuracy": of.score(pruned.module), "accuracy_tuned": of.score(running)})
    return {"how": BLOCKS_HOW, "rows": rows}


def dimap_jobs(settings: Settings) -> dict[str, Job]:
    """One part a method."""
    return {name: partial(_weights, name, settings) for name in WEIGHTS}


WEIGHTS = ("magnitude", "magnitude, per layer", "LAMP", "DIMAP, modules of blocks", "DIMAP, modules of the network")


def sparse(of: Subject, name: str, sparsity: float) -> nn.Module:
    """A copy of the network of which that share of the linear layers' weights is 0."""
    target = Weights(of.copied(), params=linear_weights(of.network))
    module = target.cut(_kept(target, name, Budget(share=1 - sparsity))).module
    assert module is not None
    return module


def _kept(target: Weights, name: str, budget: Budget) -> Keep:
    criteria: dict[str, Criterion] = {
        "LAMP": Lamp(),
        "DIMAP, modules of blocks": Dimap("block"),
        "DIMAP, modules of the network": Dimap("network"),
    }
    scores, groups = criteria.get(name, Magnitude(2.0)).score(target), target.groups()
    if name == "magnitude, per layer":
        return allocate_per_group(scores, groups, budget)
    return keep_top(scores, groups, budget)


def _weights(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of, rows = subject("swin", settings), []
    sparsities = (0.7,) if settings.quick else (0.7, 0.9)
    for number, sparsity in enumerate(sparsities):
        network = sparse(of, name, sparsity)
        for seed in settings.seeds[:2]:
            report(number / len(sparsities), f"{name} at {sparsity:.0%}, seed {seed}")
            tuned = of.trained(copy.deepcopy(network), STEPS, seed, settings, [HoldZeros()])
            left = sum(int(weight.count_nonzero()) for weight in network.parameters())
            facts = {"method": name, "sparsity": sparsity, "seed": seed, "params": left}
            rows.append(facts | {"accuracy": of.score(network), "accuracy_tuned": of.score(tuned)})
    return {"how": DIMAP_HOW, "rows": rows}
