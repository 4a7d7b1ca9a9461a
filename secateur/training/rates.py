"""Learning rates as factors of an optimiser's base rate: pure functions of the step, for `LambdaLR`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Rates = Callable[[int], float]
"""Step -> factor of the learning rate."""


def by_steps(optimizer: Optimizer, rates: Rates | None) -> dict[str, Any]:
    """The optimiser with its rates by steps, as a Lightning module's `configure_optimizers` returns it.

    Args:
        optimizer: with its base rates.
        rates: None: the base rates stay.
    """
    if rates is None:
        return {"optimizer": optimizer}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rates), "interval": "step"}}


def exponential_decay(final: float, steps: int) -> Rates:
    """A straight line in the logarithm from 1 at step 0 to `final` at `steps`, and `final` from there on.

    3D Gaussian Splatting (Kerbl et al. 2023) moves the means so, with `final` = 0.01 over 30,000 steps.

    Raises:
        ValueError: `final` is not above 0, or there are no steps.
    """
    if final <= 0:
        raise ValueError(f"final must be above 0, got {final}")
    _check_steps(steps)
    return lambda step: float(final ** min(step / steps, 1.0))


def cosine(warmup: int, steps: int, final: float = 0.0) -> Rates:
    """A straight line up to 1 over `warmup` steps, then half a cosine down to `final` at `steps`.

    The decay of SGDR without restarts (Loshchilov and Hutter 2017, eq. 5). No step has a rate of 0 before the last.

    Raises:
        ValueError: the warm-up does not end before the last step, or is negative.
    """
    _check_steps(steps)
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must be 0 to {steps - 1}, fewer than the {steps} steps, got {warmup}")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / (steps - warmup), 1.0)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
