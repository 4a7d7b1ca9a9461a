"""Section `structured`: channels, heads and neurons are cut out, until so many multiply-adds are left."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from networks.entrants import structured
from networks.models import KINDS, example
from networks.settings import Settings
from networks.training import Labels
from secateur.allocation import Allocator, Budget, allocate, allocate_knapsack, allocate_per_group
from secateur.console import Report
from secateur.distortion import RateDistortion, measure_curves
from secateur.surgery import Network
from secateur.surgery.cost import count_macs
from secateur.units import Scores

HOW = (
    "Sparsity is the share of the multiply-adds that is gone from the network that was really cut: the largest budget "
    "that leaves no more than the rest. 'global': all units compete by score; the other allocations are measured with "
    "magnitude and the squared Taylor term only, since they ask how a budget is split, not by what: the same share of "
    "each group, a knapsack of scores and multiply-adds, and RD-Prune's curves of output distortion. Criteria see 256 "
    "training pictures, other ones for each seed; estimated Hessians take 4 probes, SynFlow 20 rounds. Fine-tuning is "
    "60 steps of 64 pictures with AdamW, in another order for each seed. Accuracy is on test pictures. No batch norm "
    "is recalibrated before fine-tuning."
)
SPLIT_WITH = ("magnitude", "Taylor, squared")
"""Criteria with which all allocations are measured."""

BISECTIONS = 10
CURVE_PICTURES = 128
"""Training pictures that curves of distortion are measured on."""

Allocators = dict[str, Allocator]


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a network and criterion."""
    return {
        f"{name}: {method}": partial(_criterion, name, method, settings)
        for name in settings.networks
        for method in structured(KINDS[name], settings)
    }


def _criterion(name: str, method: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    kind, network, _ = settings.dense(name)
    target, entrant = kind.units(network), structured(kind, settings)[method]
    whole = count_macs(network, example())
    rows, seconds = [], []
    allocators: Allocators = {}
    for number, seed in enumerate(settings.seeds):
        scores: Scores | None = None
        for sparsity in settings.structured:
            report(number / len(settings.seeds), f"{name}: {method} at {sparsity:.0%}")
            if scores is None or entrant.by_share:
                start = time.perf_counter()
                scores = entrant.score(target, 1 - sparsity, seed)
                seconds.append(time.perf_counter() - start)
                allocators = _allocators(method, target, scores, settings, seed)
            for allocation, allocator in allocators.items():
                cut = partial(_cut, target, scores, allocator)
                facts = {"allocation": allocation, "sparsity": sparsity}
                rows.append(facts | _row(target, cut, (1 - sparsity) * whole, seed, settings))
    return {"how": HOW, "seconds_to_score": min(seconds), "rows": rows}


def _row(
    target: Network, cut: Callable[[float], Network], limit: float, seed: int, settings: Settings
) -> dict[str, Any]:
    try:
        small = within_macs(target, cut, limit)
    except ValueError as error:
        return {"seed": seed, "failed": str(error)}
    return settings.judged(small.module, seed)


def within_macs(target: Network, cut: Callable[[float], Network], limit: float) -> Network:
    """The network of the largest share of the budget, by bisection, that takes no more than `limit` multiply-adds.

    Args:
        target: the dense network.
        cut: share, 0 to 1 -> the network that it leaves; ValueError where the share does not hold the floors.
        limit: multiply-adds of a forward of one picture.

    Raises:
        ValueError: none does.
    """
    best, low, high = None, 0.0, 1.0
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        try:
            small = cut(share)
        except ValueError:
            low = share
            continue
        if count_macs(small.module, example()) <= limit:
            best, low = small, share
        else:
            high = share
    if best is None:
        raise ValueError(f"no share leaves at most {limit:g} multiply-adds of {type(target.module).__name__}")
    return best


def _cut(target: Network, scores: Scores, allocator: Allocator, share: float) -> Network:
    return target.cut(allocator(scores, target.groups(), Budget(share=share, cost="macs")))


def _allocators(method: str, target: Network, scores: Scores, settings: Settings, seed: int) -> Allocators:
    if method not in SPLIT_WITH:
        return {"global": allocate}
    pictures = Labels(CURVE_PICTURES, CURVE_PICTURES, seed)
    curves = measure_curves(target, pictures.outputs, scores, 2 if settings.quick else 8)
    return {
        "global": allocate,
        "per group": allocate_per_group,
        "knapsack": allocate_knapsack,
        "rate-distortion": RateDistortion(curves),
    }
