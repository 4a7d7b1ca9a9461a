"""The ways to cut units out of a vision transformer that compete, each with what it looks at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from secateur.allocation import Budget, allocate_per_group, unit_costs
from secateur.distortion import RateDistortion, measure_curves
from secateur.greedy import Stage, prune_greedily
from secateur.importance import (
    Fisher,
    HessianDiagonal,
    HessianProduct,
    HessianTrace,
    Lamp,
    Magnitude,
    MaskTaylor,
    Normalized,
    Random,
    RankMixture,
    Taylor,
)
from secateur.schedules import alternate_dimensions
from secateur.surgery.cost import count_macs
from secateur.surgery.exact_budget import allocate_cut
from secateur.surgery.network import Network
from secateur.units import Criterion, Scores, UnitGroup
from vision.judging import STEPS
from vision.settings import Settings
from vision.subjects import Subject
from vit.data import ImageBatches
from vit.inputs import example_inputs
from vit.slimsam import SlimSam
from vit.tasks.task import logits_of
from vit.units import Kind, prunable

INNER: tuple[Kind, ...] = ("heads", "neurons")
ALL: tuple[Kind, ...] = ("embedding", "heads", "neurons")

Cut = Callable[[Subject, float, int, Settings], nn.Module]
"""(subject, share of the multiply-adds that may stay, seed, settings) -> a cut copy of its network."""


def _eager(of: Subject, kinds: tuple[Kind, ...]) -> Network:
    """Units of a copy whose attention has a second derivative."""
    network: Any = of.copied()
    network.set_attn_implementation("eager")
    return prunable(network, kinds, example_inputs(network))


def units(of: Subject, kinds: tuple[Kind, ...] = INNER) -> Network:
    """The units of the subject's network."""
    return prunable(of.network, kinds, example_inputs(of.network))


def _scores(criterion: Criterion, of: Subject, kinds: tuple[Kind, ...], seed: int, settings: Settings) -> Scores:
    return criterion.score(_eager(of, kinds), of.objective(seed, settings))


def scored(criterion: Criterion, kinds: tuple[Kind, ...] = INNER) -> Cut:
    """The best units of all by a criterion, until the cut network has no more than the multiply-adds."""

    def cut(of: Subject, share: float, seed: int, settings: Settings) -> nn.Module:
        target = units(of, kinds)
        scores = _scores(criterion, of, kinds, seed, settings)
        return target.cut(allocate_cut(target, scores, Budget(share=share, cost="macs"))).module

    return cut


def _random(of: Subject, share: float, seed: int, settings: Settings) -> nn.Module:
    target = units(of)
    budget = Budget(share=share, cost="macs")
    return target.cut(allocate_cut(target, Random(seed).score(target), budget, allocate_per_group)).module


def _hessian_trace(of: Subject, share: float, seed: int, settings: Settings) -> nn.Module:
    return scored(HessianTrace(HessianDiagonal(settings.probes, absolute=True)))(of, share, seed, settings)


def _rate_distortion(of: Subject, share: float, seed: int, settings: Settings) -> nn.Module:
    """Squared Taylor terms rank the units of a layer; curves of the output's distortion say how many stay."""
    target = units(of)
    scores = _scores(Taylor("square"), of, INNER, seed, settings)
    pictures = of.calibration(seed, settings, batch=128)[0][0]
    curves = measure_curves(target, lambda each: logits_of(each(pictures)), scores, settings.levels)
    budget = Budget(share=share, cost="macs")
    return target.cut(allocate_cut(target, scores, budget, RateDistortion(curves))).module


DEPTH = 0.44
"""Whole modules' share of all that goes, as in MultiPruner."""

CHUNK = 16
"""Neurons that go together."""


def _multi_pruner(of: Subject, share: float, seed: int, settings: Settings) -> nn.Module:
    """Depth, neurons, heads, each by the loss on the calibration; then single units until the budget is met."""
    inputs = example_inputs(of.network)
    limit = share * count_macs(of.network, inputs)
    pictures, labels = of.calibration(seed, settings, batch=128)[0]
    chunk = 4 * CHUNK if settings.quick else CHUNK

    @torch.no_grad()
    def loss(network: Any) -> float:
        return float(cross_entropy(logits_of(network(pictures)), labels))

    depth = Stage(lambda group: True, DEPTH * (1 - share) / share * limit, "macs")
    shallow, _ = prune_greedily(units(of, ("attentions", "feed_forwards")), [depth], loss)
    left = prunable(shallow.module, INNER, inputs)
    # What is left over goes unit by unit, so that all meet the same budget.
    rest = 0.96 * (count_macs(shallow.module, inputs) - limit)
    held = {kind: sum(float(unit_costs(each, "macs").sum()) for each in _of(kind, left)) for kind in INNER}
    neurons = rest * held["neurons"] / sum(held.values())
    widths = [
        Stage(lambda group: group.name.endswith("neurons"), neurons, "macs", chunk),
        Stage(lambda group: group.name.endswith("heads"), rest, "macs"),
    ]
    small, _ = prune_greedily(left, widths, loss)
    last = prunable(small.module, INNER, inputs)
    budget = Budget(limit=limit, cost="macs")
    return last.cut(allocate_cut(last, Magnitude(2.0).score(last), budget)).module


def _of(kind: str, network: Network) -> list[UnitGroup]:
    return [group for group in network.groups() if group.name.endswith(kind)]


def _slim_sam(of: Subject, share: float, seed: int, settings: Settings) -> nn.Module:
    """Width, then heads and neurons, each aligned with the dense model's features for half of the short training."""
    steps = settings.recovery(STEPS).steps
    batch = settings.recovery(STEPS).batch_size
    method = SlimSam(_slim_share(of, share), steps=max(1, steps // 2), rate=1e-3, validate_every=max(1, steps // 4))
    calibration = [pixels for pixels, _ in of.calibration(seed, settings)]
    batches = ImageBatches(of.training, batch, seed, settings.recovery(STEPS).augmentation)
    held_out = [of.validation.pixel_values(slice(250))]
    return method.fit(of.copied(), batches, calibration, held_out, seed=seed).network.module


def _slim_share(of: Subject, share: float) -> float:
    """The largest share of each width whose network has no more than that share of the multiply-adds."""
    inputs, low, high = example_inputs(of.network), 0.0, 1.0
    limit = share * count_macs(of.network, inputs)
    for _ in range(10):
        middle = (low + high) / 2
        try:
            macs = count_macs(_slimmed(of, middle).module, inputs)
        except ValueError:
            low = middle
            continue
        low, high = (middle, high) if macs <= limit else (low, middle)
    return low


def _slimmed(of: Subject, share: float) -> Network:
    """The widths that SlimSAM leaves."""
    of_kind = [lambda group, kind=kind: group.name.endswith(f".{kind}") for kind in ALL]
    phases = alternate_dimensions(
        units(of, ALL), Random(0), Budget(share=share), of_kind, lambda cut, _: cut, allocator=allocate_per_group
    )
    return deque(phases, maxlen=1).pop()


ENTRANTS: Mapping[str, Cut] = {
    "random": _random,
    "magnitude": scored(Magnitude(2.0)),
    "LAMP": scored(Lamp()),
    "Taylor, squared": scored(Taylor("square")),
    "Taylor, squared, normalised": scored(Normalized(Taylor("square"), "mean")),
    "Group Fisher": scored(MaskTaylor("square")),
    "Group Fisher, with width": scored(MaskTaylor("square"), ALL),
    "Fisher": scored(Fisher()),
    "OBA (Taylor of second order)": scored(Taylor(second=HessianProduct())),
    "Hessian trace": _hessian_trace,
    "ranks of magnitude and Taylor": scored(RankMixture((Magnitude(2.0), Taylor("square")))),
    "rate-distortion": _rate_distortion,
    "MultiPruner": _multi_pruner,
    "SlimSAM": _slim_sam,
}
"""Ways by name."""


def matching(
    of: Subject, criterion: Criterion, kinds: tuple[Kind, ...], macs: float, seed: int, settings: Settings
) -> nn.Module:
    """As `scored`, with a limit on the multiply-adds."""
    target = units(of, kinds)
    scores = _scores(criterion, of, kinds, seed, settings)
    return target.cut(allocate_cut(target, scores, Budget(limit=macs, cost="macs"))).module
