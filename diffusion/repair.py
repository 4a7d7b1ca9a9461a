"""OBS repair: the layers that read cut units are solved again, from what they see along denoising trajectories.

    small = network.cut(keep)
    repair(small, network.module, trajectories)

Nothing is trained. What a layer of the dense model is given at all steps of the sampler makes one Hessian X^T X, and
the columns that stay make up for those that went (Optimal Brain Surgeon); so OBS-Diff (Zhu et al., arXiv 2510.06751)
prunes heads and feed-forward neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from math import log, sqrt
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from diffusion.steps import StepCounter
from diffusion.trajectory import Trajectories
from secateur.console import Report, silent, stretch
from secateur.recovery.refit import ObsRefit
from secateur.solvers.gram import Gram, layer_inputs
from secateur.surgery.cost import evaluating
from secateur.surgery.cut import Cuts
from secateur.surgery.layers import join_name, split_name
from secateur.surgery.network import Network

StepWeights = Callable[[int, int], float]
"""(step from 0, steps) -> how much the squared error of a layer's output counts at that step of the sampler."""


def logarithmic_decrease(step: int, steps: int, last: float = 0.1) -> float:
    """1 at the first step, `last` at the last one, a line in the logarithm of the step between them.

    OBS-Diff (arXiv 2510.06751) weighs its Hessian so, because an error of an early step is carried on by all later
    ones; the ends of its line are not ours.
    """
    return 1 + (last - 1) * log(1 + step) / log(steps) if steps > 1 else 1.0


@torch.no_grad()
def repair(
    pruned: Network,
    dense: nn.Module,
    calibration: Trajectories,
    solver: ObsRefit | None = None,
    *,
    weights: StepWeights | None = None,
    layers: Sequence[str] = ("*",),
    batch_size: int = 16,
    memory_bytes: float | None = None,
    report: Report = silent,
) -> tuple[str, ...]:
    """Give each layer that lost inputs the weights, and the bias, whose output is nearest to the dense layer's.

    Such layers are `to_out` where heads went, the second layer of a feed-forward, the second convolution of a resnet.
    The weights are made from the dense model's: what was trained into the pruned one since the cut is lost.

    Args:
        pruned: the network that was cut; its weights are changed in place.
        dense: the model that it was cut from.
        calibration: the dense model runs along these trajectories.
        solver: damping of the least squares; None: `ObsRefit()`.
        weights: of the steps; None: all count alike.
        layers: patterns over names of layers; only those that match are repaired.
        batch_size: trajectories at a time.
        memory_bytes: the most that Hessians may take together (but one is always held): the trajectories are run
            again for each package of layers. None: all at once.
        report: told how far it is.

    Returns:
        Names of the layers that were repaired.

    Raises:
        ValueError: a pattern matches no layer that lost inputs, a layer is not reached, or `dense` does not fit.
    """
    solver = solver or ObsRefit()
    lost = _chosen(_layers_with_lost_inputs(pruned.cuts, dense), layers)
    packages = _packages(lost, memory_bytes)
    for number, package in enumerate(packages):
        share = stretch(report, number / len(packages), (number + 1) / len(packages))
        grams = _grams_along(dense, package, calibration, weights, batch_size, share)
        for name, layer in package.items():
            if not grams[name].samples:
                raise ValueError(f"no step of the trajectories reached {name!r}, so there is nothing to repair it by")
            _solve(pruned, name, layer, grams[name], solver)
    return tuple(lost)


def _layers_with_lost_inputs(cuts: Cuts, dense: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, dim in cuts.rows:
        owner, tensor = split_name(name)
        if tensor != "weight" or dim != 1:
            continue
        try:
            layer = dense.get_submodule(owner)
        except AttributeError as error:
            raise ValueError(f"the dense model has no layer {owner!r}: it is not what was cut") from error
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            found[owner] = layer
    return found


def _chosen(found: Mapping[str, nn.Module], patterns: Sequence[str]) -> dict[str, nn.Module]:
    for pattern in patterns:
        if found and not any(fnmatchcase(name, pattern) for name in found):
            some = next(iter(found))
            raise ValueError(
                f"pattern {pattern!r} matches none of {len(found)} layers that lost inputs, such as {some!r}"
            )
    return {name: layer for name, layer in found.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _packages(layers: Mapping[str, nn.Module], memory_bytes: float | None) -> list[dict[str, nn.Module]]:
    """The layers in packages whose Hessians, in float32, fit together."""
    packages: list[dict[str, nn.Module]] = []
    left = 0.0
    for name, layer in layers.items():
        needed = 4.0 * _columns(layer) ** 2
        if not packages or (memory_bytes is not None and needed > left):
            packages.append({})
            left = memory_bytes or 0.0
        packages[-1][name] = layer
        left -= needed
    return packages


def _columns(layer: nn.Module) -> int:
    """Inputs of one output, with a constant 1 behind them where there is a bias."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight[0].numel() + (layer.bias is not None)


def _grams_along(
    dense: nn.Module,
    layers: Mapping[str, nn.Module],
    calibration: Trajectories,
    weights: StepWeights | None,
    batch_size: int,
    report: Report,
) -> dict[str, Gram]:
    """The layers' Hessians over all steps of all trajectories."""
    steps, counter = len(calibration.sampler), StepCounter()

    def weight() -> float:
        return 1.0 if weights is None else weights(counter.step, steps)

    grams = {name: Gram(_columns(layer), next(layer.parameters()).device) for name, layer in layers.items()}
    with evaluating(dense), _hooked(dense, layers, grams, counter, weight):
        for indices in torch.arange(calibration.count).split(batch_size):
            report(float(indices[0]) / calibration.count, f"what {len(layers)} layers see")
            calibration.sample(dense, indices)
    return grams


@contextmanager
def _hooked(
    dense: nn.Module,
    layers: Mapping[str, nn.Module],
    grams: Mapping[str, Gram],
    counter: StepCounter,
    weight: Callable[[], float],
) -> Iterator[None]:
    count = dense.register_forward_pre_hook(lambda _, args, kwargs: counter.advance(args, kwargs), with_kwargs=True)
    handles = [
        count,
        *(layer.register_forward_pre_hook(partial(_see, grams[n], weight)) for n, layer in layers.items()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _see(gram: Gram, weight: Callable[[], float], layer: nn.Module, args: tuple[Any, ...]) -> None:
    x = layer_inputs(layer, args[0]).flatten(0, -2).float()
    if layer.bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    gram.add(x * sqrt(weight()))


def _solve(pruned: Network, name: str, layer: nn.Module, gram: Gram, solver: ObsRefit) -> None:
    kept = pruned.cuts.rows[join_name(name, "weight"), 1]
    small = pruned.module.get_submodule(name)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    outputs = pruned.cuts.rows.get((join_name(name, "weight"), 0))
    flat = weight.detach().flatten(1).float()
    each = flat.shape[1] // weight.shape[1]
    if bias is not None:
        flat = torch.cat([flat, bias.detach()[:, None].float()], dim=1)
    if outputs is not None:
        flat = flat[outputs.rows.to(flat.device)]
    solved = solver.columns(flat, gram, _mask(kept.size, kept.rows, each, bias is not None).to(flat.device))
    inputs = solved[:, : len(kept.rows) * each]
    inputs = inputs.unflatten(1, (len(kept.rows), each))[:, kept.rows.argsort().argsort().to(flat.device)]
    mine: Tensor = small.weight  # type: ignore[assignment]
    if mine.numel() != inputs.numel():
        raise ValueError(f"{name!r} has {tuple(mine.shape)} weights, and the cut leaves {inputs.numel()} of the dense")
    mine.copy_(inputs.reshape(mine.shape))
    if bias is not None:
        small.bias.copy_(solved[:, -1])  # type: ignore[operator]


def _mask(size: int, rows: Int64[Tensor, " kept"], each: int, biased: bool) -> Bool[Tensor, " columns"]:
    """Which columns of the flattened weight stay; so does the constant input of a bias."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[rows] = True
    mask = mask.repeat_interleave(each)
    return torch.cat([mask, torch.ones(1, dtype=torch.bool)]) if biased else mask
