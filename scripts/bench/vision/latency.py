"""Section `latency`: how much faster ViT-S/16 and ViT-B/16 are at 224 x 224, by their shapes alone: random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from block_sparse import vision_transformer
from parts import Job
from torch import nn

from secateur.allocation import Budget, allocate_per_group
from secateur.console import Report
from secateur.importance import Random
from secateur.surgery.cost import count_macs, count_params
from vision.settings import Settings, as_speed
from vit.inputs import example_inputs
from vit.tokens import LinearScorer, RandomDropping, ReducedModel, Target, TokenMerging
from vit.tokens.costs import Place
from vit.tokens.pruner import TokenPruner
from vit.units import prunable

HOW = (
    "transformers' ViTModel with random weights, 12 layers. Tokens: the share that is gone is of patches and class "
    "token, a mean over the layers' two halves; they go by an equal rate at each layer, between attention and MLP. "
    "Cropr is its inference form. Channels: the same share of the heads (rounded to whole ones) and neurons of each "
    "layer, at random. Multiply-adds are those of one picture, attention's and those of choosing counted; the "
    "theoretical speedup is their ratio. Times: the least of 4, in turns with the dense model."
)
MODELS = ("ViT-S", "ViT-B")
BATCHES = (1, 8)
SHARES = (0.3, 0.5, 0.7)
PLACE: Place = "between attention and mlp"

PRUNERS: dict[str, Callable[[int, tuple[int, ...]], TokenPruner]] = {
    "random": lambda width, at: RandomDropping(),
    "ToMe": lambda width, at: TokenMerging(),
    "Cropr": LinearScorer,
}


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a model and batch."""
    names, batches = (MODELS[:1], BATCHES[:1]) if settings.quick else (MODELS, BATCHES)
    return {f"{name}, batch {batch}": partial(_model, name, batch, settings) for name in names for batch in batches}


def _model(name: str, batch: int, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    dense = vision_transformer(name, 2 if settings.quick else 12)
    inputs = example_inputs(dense)
    whole, rows = count_macs(dense, inputs), []
    shares = SHARES[:1] if settings.quick else SHARES
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for number, share in enumerate(shares):
        report(number / len(shares), f"{name}, batch {batch}: {share:.0%} gone")
        runs = {"dense": dense, "channels": narrow(dense, share)}
        runs |= {f"tokens: {method}": fewer(dense, method, share) for method in PRUNERS}
        times = settings.times(runs, pixels, repeats=4)
        for method, network in runs.items():
            if method != "dense":
                macs = count_macs(network, inputs)
                facts = {"method": method, "share": share, "macs": macs, "theoretical_speedup": whole / macs}
                speeds = as_speed(times[method], times["dense"], batch)
                rows.append(facts | {"params": count_params(network)} | speeds)
    return {"how": HOW, "params": count_params(dense), "macs": whole, "rows": rows}


def narrow(dense: nn.Module, share: float) -> nn.Module:
    """A copy without that share of the heads and neurons of each layer."""
    target = prunable(dense, ("heads", "neurons"), example_inputs(dense))
    keep = allocate_per_group(Random(0).score(target), target.groups(), Budget(share=1 - share))
    return target.cut(keep).module


def fewer(dense: nn.Module, method: str, share: float) -> nn.Module:
    """A copy whose tokens go."""
    network: Any = copy.deepcopy(dense)
    at = tuple(range(network.config.num_hidden_layers))
    pruner = PRUNERS[method](network.config.hidden_size, at)
    return ReducedModel(network, pruner, Target(1 - share, "tokens", at), place=PLACE).eval()
