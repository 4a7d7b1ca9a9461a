"""Sections `blocks` and `dimap`: weights become 0, block by block or one by one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job
from torch import Tensor, nn

from secateur.allocation import Budget, allocate_per_group
from secateur.block_sparse import with_blocks
from secateur.console import Report
from secateur.granularity import Block, Weights
from secateur.importance import Lamp, Magnitude
from secateur.masked_training import MovementPruning
from secateur.recovery.refit import ObsRefit
from secateur.recovery.zeros import HoldZeros
from secateur.schedules import Polynomial
from secateur.selection import keep_top
from secateur.units import Criterion, Keep
from vision.judging import STEPS, cost
from vision.settings import Settings
from vision.subjects import Subject, subject
from vit.dimap import Dimap, linear_weights
from vit.lpvit import LPViT
from vit.movement import block_masks

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
MOVEMENT_HOW = (
    "Block movement pruning of the same blocks, with 240 steps as in the section static: which of them go follows from "
    "where training moves their weights, more and more of them in the first 160 (a cubic schedule), while the scores "
    "of those that are gone go on. There is no accuracy at once. Speed is as of the other parts."
)
SPARSITIES = (0.5, 0.7, 0.3)
MOVEMENT_STEPS = 240
BLOCK = (32, 32)

LPVITS: Mapping[str, LPViT] = {"LPViT": LPViT(), "LPViT, refitted": LPViT(refit=ObsRefit())}


def block_jobs(settings: Settings) -> dict[str, Job]:
    """One part a method and share."""
    shares = SPARSITIES[:1] if settings.quick else SPARSITIES
    found: dict[str, Job] = {}
    for share in shares:
        found |= {f"{name}: {share:.0%}": partial(_blocks, name, share, settings) for name in LPVITS}
        found[f"block movement: {share:.0%}"] = partial(_movement, share, settings)
    return found


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


def _movement(sparsity: float, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of, rows = subject("fashion", settings), []
    steps = settings.recovery(MOVEMENT_STEPS).steps
    for number, seed in enumerate(settings.seeds):
        report(number / len(settings.seeds), f"block movement at {sparsity:.0%}, seed {seed}")
        network = of.copied()
        layers = {name: part for name, part in network.named_modules() if isinstance(part, nn.Linear)}
        blocks = {name: part.weight for name, part in layers.items() if name != "classifier"}
        callback = MovementPruning(
            Polynomial(3),
            Budget(share=1 - sparsity),
            2 * steps // 3,
            granularity=Block(*BLOCK),
            params=partial(_is_one_of, list(blocks.values())),
        )
        tuned = of.trained(network, steps, seed, settings, [callback])
        # The module that is trained holds the network under a name of its own.
        inside = len(next(iter(callback.keep)).removesuffix(f"{next(iter(blocks))}.weight"))
        keep = block_masks(tuned, {name[inside:]: mask for name, mask in callback.keep.items()}, BLOCK)
        running = with_blocks(tuned, keep)
        facts: dict[str, Any] = {"method": "block movement", "sparsity": sparsity, "seed": seed} | cost(running, of)
        if seed == settings.seeds[0]:
            facts |= settings.speed(running, of.network, of.batch())
        rows.append(facts | {"steps": steps, "accuracy_tuned": of.score(running)})
    return {"how": MOVEMENT_HOW, "rows": rows}


def _is_one_of(weights: list[Tensor], name: str, tensor: Tensor) -> bool:
    return any(tensor is weight for weight in weights)


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
