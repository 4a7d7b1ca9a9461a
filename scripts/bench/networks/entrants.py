"""The criteria that compete, each with what it looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from networks.models import PICTURE, Kind, is_weight
from networks.settings import Settings
from networks.training import Recipe
from secateur.importance import (
    ActivationAttention,
    Fisher,
    GraSP,
    HessianDiagonal,
    HessianProduct,
    HessianTrace,
    Lamp,
    Magnitude,
    MaskHessian,
    MaskTaylor,
    Normalized,
    Product,
    Random,
    RankMixture,
    SynFlow,
    Taylor,
    Wanda,
)
from secateur.importance.movement import Movement
from secateur.units import Criterion, Scores

Score = Callable[[Any, float, int], Scores]
"""(target, share of the units that is to stay, seed) -> scores."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A criterion in the bench.

    Args:
        score: see `Score`.
        by_share: the scores depend on the share, so they are made anew for each.
    """

    score: Score
    by_share: bool = False


GRASP_TEMPERATURE = 200.0
"""Of the logits, as in GraSP's released code."""


def structured(kind: Kind, settings: Settings) -> dict[str, Entrant]:
    """Criteria of channels, heads and neurons."""
    probed = HessianDiagonal(settings.probes, absolute=True)
    return {
        **_data_free(settings),
        "magnitude L1": _plain(Magnitude(1.0)),
        "magnitude, normalised": _plain(Normalized(Magnitude(2.0), "mean")),
        "Taylor": _seen(Taylor(), settings),
        "Taylor, squared": _seen(Taylor("square"), settings),
        "Taylor, squared, normalised": _seen(Normalized(Taylor("square"), "mean"), settings),
        "Taylor of second order": _seen(Taylor(second=HessianProduct()), settings),
        "Group Fisher": _seen(MaskTaylor("square"), settings),
        **_curvatures(probed, settings),
        "Hessian trace": _seen(HessianTrace(probed), settings),
        "mask Hessian": _seen(MaskHessian(settings.probes), settings),
        "GraSP": _seen(GraSP(), settings, GRASP_TEMPERATURE),
        "Wanda": _seen(Wanda(), settings),
        "activation attention": _seen(ActivationAttention(activation=kind.activation), settings),
        "ranks of magnitude and Taylor": _seen(RankMixture((Magnitude(2.0), Taylor("square"))), settings),
        "magnitude times Taylor": _seen(Product((Magnitude(2.0), Taylor("square"))), settings),
    }


def unstructured(settings: Settings) -> dict[str, Entrant]:
    """Criteria of single weights."""
    probed = HessianDiagonal(settings.probes, absolute=True)
    return {
        **_data_free(settings),
        # All data in one batch: the connection sensitivity of arXiv 1810.02340.
        "SNIP": _seen(Taylor("elements"), settings, batch=256),
        "Taylor": _seen(Taylor(), settings),
        **_curvatures(probed, settings),
        "GraSP": _seen(GraSP(), settings, GRASP_TEMPERATURE),
        "Wanda": _seen(Wanda(), settings),
        "movement": Entrant(lambda target, share, seed: movement(target.module, settings.recipe, seed)),
        "ranks of magnitude and Taylor": _seen(RankMixture((Magnitude(2.0), Taylor())), settings),
    }


def movement(network: nn.Module, recipe: Recipe, seed: int) -> Scores:
    """Scores of how the weights move in a fine-tune of a copy, by the names that the network itself gives them."""
    watcher = Movement(params=is_weight)
    recipe(network, seed, (watcher,))
    return {name.removeprefix("network."): score for name, score in watcher.scores.items()}


def _data_free(settings: Settings) -> dict[str, Entrant]:
    rounds = 2 if settings.quick else 20
    return {
        "random": Entrant(lambda target, share, seed: Random(seed).score(target)),
        "magnitude": _plain(Magnitude(2.0)),
        "LAMP": _plain(Lamp()),
        "SynFlow": Entrant(lambda target, share, seed: SynFlow((1, *PICTURE), share, rounds).score(target), True),
    }


def _curvatures(probed: HessianDiagonal, settings: Settings) -> dict[str, Entrant]:
    return {
        "Fisher": _seen(Fisher(), settings),
        "Hessian diagonal": _seen(probed, settings),
        "Hessian product": _seen(HessianProduct(), settings),
    }


def _plain(criterion: Criterion) -> Entrant:
    return Entrant(lambda target, share, seed: criterion.score(target))


def _seen(criterion: Criterion, settings: Settings, temperature: float = 1.0, batch: int = 16) -> Entrant:
    return Entrant(lambda target, share, seed: criterion.score(target, settings.calibration(seed, batch, temperature)))
