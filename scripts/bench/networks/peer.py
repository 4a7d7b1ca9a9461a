"""Section `peer`: Torch-Pruning's own pruner and ours, at equal multiply-adds."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from parts import Job
from torch import nn

from networks.models import Transformer, example
from networks.settings import Settings
from networks.structured import BISECTIONS, within_macs
from networks.training import Labels
from secateur.allocation import Allocator, Budget, allocate, allocate_per_group
from secateur.console import Report
from secateur.importance import Lamp, Magnitude, MaskTaylor, Normalized, RankMixture, Taylor
from secateur.surgery import Network
from secateur.surgery.cost import count_macs
from secateur.units import Criterion

HOW = (
    "Torch-Pruning prunes first, once, to the largest ratio whose network takes no more than the wanted "
    "multiply-adds; ours then gets what Torch-Pruning's network takes as its limit, network by network, so it never "
    "takes more; where no ratio reaches what is wanted, its row says so, and ours gets what is wanted. Both cut the "
    "same kinds of units: channels of the ResNet, heads and neurons of the transformer, whose stream stays as wide as "
    "it is. Same pictures for gradients, same fine-tune. Theirs: magnitude and Taylor importance of groups with the "
    "defaults of the package (a mean over the group, normalised by the layer's mean), global or with one ratio for "
    "each layer."
)


@dataclass(frozen=True, slots=True)
class Theirs:
    """A way to use Torch-Pruning.

    Args:
        importance: made anew for each network.
        over_all: whether layers compete.
        gradients: whether it looks at pictures.
    """

    importance: type
    over_all: bool
    gradients: bool = False


@dataclass(frozen=True, slots=True)
class Ours:
    """A criterion and an allocation of ours that need the same as one of theirs."""

    criterion: Criterion
    allocator: Allocator
    gradients: bool = False


THEIRS = {
    "magnitude, global": Theirs(torch_pruning.importance.GroupMagnitudeImportance, True),
    "magnitude, one ratio": Theirs(torch_pruning.importance.GroupMagnitudeImportance, False),
    "Taylor, global": Theirs(torch_pruning.importance.GroupTaylorImportance, True, True),
}
OURS = {
    "LAMP, global": Ours(Lamp(), allocate),
    "magnitude, normalised, global": Ours(Normalized(Magnitude(2.0), "mean"), allocate),
    "magnitude, per group": Ours(Magnitude(2.0), allocate_per_group),
    "Group Fisher, global": Ours(MaskTaylor("square"), allocate, True),
    "Taylor, squared, normalised, global": Ours(Normalized(Taylor("square"), "mean"), allocate, True),
    "ranks of magnitude and Taylor, global": Ours(RankMixture((Magnitude(2.0), Taylor("square"))), allocate, True),
}


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a network and way of Torch-Pruning."""
    return {f"{name}: {how}": partial(_way, name, how, settings) for name in settings.networks for how in THEIRS}


def _way(name: str, how: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    kind, network, _ = settings.dense(name)
    target, whole = kind.units(network), count_macs(network, example())
    rival, rows = THEIRS[how], []
    entrants = {label: ours for label, ours in OURS.items() if ours.gradients == rival.gradients}
    for number, seed in enumerate(settings.seeds):
        pictures = settings.calibration(seed)
        scores = {label: ours.criterion.score(target, pictures) for label, ours in entrants.items()}
        for sparsity in settings.structured:
            report(number / len(settings.seeds), f"{name}: {how} at {sparsity:.0%}")
            limit = (1 - sparsity) * whole
            row = {"who": "torch-pruning", "method": how} | _theirs(network, rival, pictures, limit, seed, settings)
            rows.append({"sparsity": sparsity} | row)
            for label, ours in entrants.items():
                cut = partial(_cut, target, scores[label], ours.allocator)
                start = time.perf_counter()
                small = within_macs(target, cut, row.get("macs", limit))
                mine = {"who": "secateur", "method": label, "seconds": time.perf_counter() - start}
                rows.append({"sparsity": sparsity} | mine | settings.judged(small.module, seed))
    return {"how": HOW, "torch_pruning_takes": "gradients" if rival.gradients else "weights", "rows": rows}


def _theirs(
    network: nn.Module, way: Theirs, pictures: Labels, limit: float, seed: int, settings: Settings
) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        small = torch_pruned(network, way, pictures, limit)
    except ValueError as error:
        return {"seed": seed, "failed": str(error)}
    return {"seconds": time.perf_counter() - start} | settings.judged(small, seed)


def _cut(target: Network, scores: dict[str, Any], allocator: Allocator, share: float) -> Network:
    return target.cut(allocator(scores, target.groups(), Budget(share=share, cost="macs")))


def torch_pruned(network: nn.Module, way: Theirs, pictures: Labels, limit: float) -> nn.Module:
    """Torch-Pruning's network of the least ratio, by bisection, that takes no more than `limit` multiply-adds.

    Raises:
        ValueError: none does.
    """
    gradients = _gradients(network, pictures) if way.gradients else {}
    best, low, high = None, 0.0, 1.0
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        small = _pruned(network, way, gradients, ratio)
        if small is not None and count_macs(small, example()) <= limit:
            best, high = small, ratio
        else:
            low = ratio
    if best is None:
        raise ValueError(f"torch-pruning leaves more than {limit:g} multiply-adds at every ratio")
    return best


def _gradients(network: nn.Module, pictures: Labels) -> dict[str, torch.Tensor]:
    """Of the sum of the batches' losses, as a training loop without steps leaves them behind."""
    learning = copy.deepcopy(network)
    for loss in pictures.losses(learning):
        loss.backward()
    return {name: value.grad for name, value in learning.named_parameters() if value.grad is not None}


def _pruned(network: nn.Module, way: Theirs, gradients: dict[str, Any], ratio: float) -> nn.Module | None:
    """A copy with the ratio of channels and heads cut, or None where it does not run any more."""
    small = copy.deepcopy(network)
    for name, value in small.named_parameters():
        value.grad = gradients[name].clone() if name in gradients else None
    options: dict[str, Any] = {"ignored_layers": [small.head]}
    if isinstance(small, Transformer):
        options = _heads_and_neurons(small, ratio)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            small, example(), way.importance(), global_pruning=way.over_all, pruning_ratio=ratio, **options
        )
        pruner.step()
    small.zero_grad(set_to_none=True)
    try:
        small(example())
    except RuntimeError:
        return None
    return small


def _heads_and_neurons(small: Transformer, ratio: float) -> dict[str, Any]:
    """Options by which the stream stays whole, and attention loses whole heads."""
    attentions = [block.attention for block in small.blocks]
    stream = [layer for block in small.blocks for layer in (block.attention.out, block.down)]
    return {
        "ignored_layers": [small.embed, small.head, *stream],
        "unwrapped_parameters": [(small.positions, 2)],
        "num_heads": {layer: each.heads for each in attentions for layer in (each.q, each.k, each.v)},
        "prune_num_heads": True,
        "prune_head_dims": False,
        "head_pruning_ratio": ratio,
    }
