"""What a row says about a network: what it costs, how fast it is, and how good before and after a short training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from secateur.surgery.cost import count_bytes, count_macs, count_params
from vision.settings import Settings
from vision.subjects import Subject
from vit.inputs import example_inputs

STEPS, LONG_STEPS = 80, 600
"""Of the trainings of networks that lost units or weights: the short one that all get, and a longer one."""


def cost(network: nn.Module, of: Subject) -> dict[str, int]:
    """Parameters, bytes, and multiply-adds of one picture, attention's products counted."""
    macs = count_macs(network, example_inputs(of.network))
    return {"params": count_params(network), "bytes": count_bytes(network), "macs": macs}


def judged(
    network: nn.Module,
    of: Subject,
    seed: int,
    settings: Settings,
    callbacks: Sequence[Callback] = (),
    steps: int = STEPS,
) -> dict[str, Any]:
    """The figures of a row; speed for the first seed alone."""
    facts: dict[str, Any] = {"seed": seed} | cost(network, of)
    if seed == settings.seeds[0]:
        facts |= settings.speed(network, of.network, of.batch())
    before = of.score(network)
    tuned = of.trained(copy.deepcopy(network), steps, seed, settings, callbacks)
    return facts | {"steps": steps, "accuracy": before, "accuracy_tuned": of.score(tuned)}
