"""Section `unstructured`: single weights become 0."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts import Job
from torch import Tensor, nn

from networks.entrants import Entrant, unstructured
from networks.models import example, is_weight
from networks.settings import Settings
from networks.training import Labels
from secateur.allocation import Budget, allocate_per_group, erdos_renyi_kernel
from secateur.console import Report
from secateur.granularity import Weights
from secateur.oneshot import Chita, LayerWanda, SparseGPT, gradient_rows
from secateur.patterns import PerRow
from secateur.patterns import Unstructured as AnyWeights
from secateur.selection import keep_top
from secateur.solvers.gram import input_grams
from secateur.surgery.cost import measure_usage
from secateur.units import Keep, Scores

HOW = (
    "Sparsity is the share of zeros among the weights of layers; biases, norms and positions stay. 'global': all "
    "weights compete by score, of which LAMP's make the layers comparable; the other allocations are measured with "
    "magnitude only: the same share of each layer, and Erdos-Renyi-Kernel densities. The layer solvers SparseGPT and "
    "Wanda keep the same share of each layer (Wanda of each row), from what the dense network's layers see; CHITA "
    "chooses among all weights from the gradients of 128 batches of 4 pictures, in one stage. Movement scores come "
    "from a fine-tune of its own, of the same length, and prune the dense weights. MaskTaylor, MaskHessian and "
    "HessianTrace of single weights are Taylor and HessianDiagonal. Multiply-adds are those with weights that are not "
    "0. The rest is as in the section structured."
)
SPLIT_WITH = "magnitude"
"""The criterion with which all allocations are measured."""

Prune = Callable[[nn.Module, float, int], nn.Module]
"""(network, share of the weights that stay, seed) -> a sparse copy."""


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a network and method."""
    methods = [*unstructured(settings), *solvers(settings)]
    return {
        f"{name}: {method}": partial(_method, name, method, settings)
        for name in settings.networks
        for method in methods
    }


def _method(name: str, method: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    _, network, _ = settings.dense(name)
    rows, seconds = [], []
    prune = _scored(unstructured(settings)[method], method) if method in unstructured(settings) else None
    solve = None if prune else solvers(settings)[method]
    for number, seed in enumerate(settings.seeds):
        for sparsity in settings.unstructured:
            report(number / len(settings.seeds), f"{name}: {method} at {sparsity:.0%}")
            start = time.perf_counter()
            found = prune(network, 1 - sparsity, seed) if prune else {"of its own": solve(network, 1 - sparsity, seed)}
            seconds.append(time.perf_counter() - start)
            for allocation, sparse in found.items():
                facts = {"allocation": allocation, "sparsity": sparsity, "seed": seed}
                rows.append(facts | _left(sparse) | settings.accuracies(sparse, seed))
    return {"how": HOW, "seconds_to_prune": min(seconds), "rows": rows}


def _scored(entrant: Entrant, method: str) -> Callable[[nn.Module, float, int], dict[str, nn.Module]]:
    held: dict[int, Scores] = {}

    def prune(network: nn.Module, share: float, seed: int) -> dict[str, nn.Module]:
        target = Weights(network, params=is_weight)
        scores = None if entrant.by_share else held.get(seed)
        if scores is None:
            scores = held[seed] = entrant.score(target, share, seed)
        return {name: target.cut(keep).module for name, keep in _kept(target, scores, share, method).items()}

    return prune


def _kept(target: Weights, scores: Scores, share: float, method: str) -> dict[str, Keep]:
    groups, budget = target.groups(), Budget(share=share)
    found = {"global": keep_top(scores, groups, budget)}
    if method == SPLIT_WITH:
        densities = erdos_renyi_kernel({name: weight.shape for name, weight in target.weights().items()})
        found["per layer"] = allocate_per_group(scores, groups, budget)
        found["Erdos-Renyi-Kernel"] = allocate_per_group(scores, groups, budget, densities)
    return found


def solvers(settings: Settings) -> dict[str, Prune]:
    """Methods that choose weights and solve for those that stay, or look at a layer's inputs."""
    return {
        "SparseGPT": partial(_by_layer, lambda share: SparseGPT(AnyWeights(share)), settings),
        "Wanda by rows": partial(_by_layer, lambda share: LayerWanda(PerRow(share)), settings),
        "Wanda by rows, refitted": partial(_by_layer, lambda share: LayerWanda(PerRow(share), refit=True), settings),
        "CHITA": partial(_chita, settings),
    }


def _by_layer(
    solver: Callable[[float], SparseGPT | LayerWanda], settings: Settings, network: nn.Module, share: float, seed: int
) -> nn.Module:
    sparse = copy.deepcopy(network)
    with input_grams(sparse) as grams, torch.no_grad():
        settings.calibration(seed).outputs(sparse)
    with torch.no_grad():
        for name, gram in grams.items():
            weight = sparse.get_submodule(name).weight
            weight.copy_(solver(share).prune(weight.flatten(1), gram).weight.reshape(weight.shape))
    return sparse


def _chita(settings: Settings, network: nn.Module, share: float, seed: int) -> nn.Module:
    sparse = copy.deepcopy(network)
    target = Weights(sparse, params=is_weight)
    pictures = Labels(32 if settings.quick else 512, 4, seed)
    sizes = [view.numel() for view in target.tensors().values()]

    def write(vector: Tensor) -> None:
        with torch.no_grad():
            for view, part in zip(target.tensors().values(), vector.split(sizes), strict=True):
                view.copy_(part)

    def gradients(vector: Tensor) -> Tensor:
        write(vector)
        return gradient_rows(target, pictures)

    dense = torch.cat([view.flatten() for view in target.tensors().values()]).clone()
    # Rows are means over a batch, for which the released code recommends the linear term.
    write(Chita(share, first_order=1 / pictures.batch).prune(dense, gradients).weight)
    return sparse


def _left(sparse: nn.Module) -> dict[str, float]:
    """Parameters that are not 0, and multiply-adds with them."""
    usage = measure_usage(sparse, example())
    kept = {name: int(value.count_nonzero()) for name, value in sparse.named_parameters()}
    macs = sum(usage.products.get(name, 0.0) * count for name, count in kept.items()) + sum(usage.mixing.values())
    return {"params": sum(kept.values()), "macs": round(macs)}
