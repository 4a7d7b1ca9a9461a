"""Optimal transport: mass moved from sources to targets at least cost, exactly or smoothed by entropy.

Over POT (Python Optimal Transport): its network simplex and its Sinkhorn iterations in the log domain. Of our own is
the soft top-k, where there are two targets and the smoothed plan has a closed form with one unknown.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.maths import reject_nan


def transport(
    costs: Float[Tensor, "n m"], sources: Float[Tensor, " n"], targets: Float[Tensor, " m"]
) -> Float[Tensor, "n m"]:
    """The plan P of least sum P * costs with P 1 = sources and P^T 1 = targets: POT's network simplex, in float64.

    Raises:
        ValueError: shapes do not agree, masses are negative, or their sums differ, or a number is not finite.
        ModuleNotFoundError: POT is not installed.
    """
    _check(costs, sources, targets)
    import ot  # Its import takes most of a second.

    plan = ot.emd(*(each.detach().cpu().double().numpy() for each in (sources, targets, costs)), numItermax=1_000_000)
    return torch.from_numpy(plan).to(costs)


def sinkhorn(
    costs: Float[Tensor, "n m"],
    sources: Float[Tensor, " n"],
    targets: Float[Tensor, " m"],
    temperature: float,
    iterations: int = 1000,
    tolerance: float = 1e-9,
    warm: tuple[Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "n m"], tuple[Float[Tensor, " n"], Float[Tensor, " m"]]]:
    """The plan that is least in sum P * costs + temperature * sum P log P, and its potentials; differentiable.

    Cuturi: Sinkhorn Distances, 2013, by POT's iterations in the log domain, so that a low temperature neither overflows
    nor underflows. Masses of 0 are not allowed. Row sums are exact; the error of column sums is at most `tolerance`
    unless the iterations run out.

    Args:
        costs: (n, m).
        sources: (n,) above 0.
        targets: (m,) above 0, of the same sum.
        temperature: of the entropy, in the unit of the costs, above 0.
        iterations: the most.
        tolerance: norm of the error of the column sums at which to stop; it is looked at every 10 iterations.
        warm: potentials to begin from, as returned.

    Raises:
        ValueError: shapes do not agree, a mass or the temperature is not positive, sums differ, or something holds NaN.
        ModuleNotFoundError: POT is not installed.
    """
    _check(costs, sources, targets)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not bool((sources > 0).all()) or not bool((targets > 0).all()):
        raise ValueError("Sinkhorn needs masses above 0 in all sources and targets")
    import ot

    plan, log = ot.bregman.sinkhorn_log(
        sources.to(costs),
        targets.to(costs),
        costs,
        temperature,
        numItermax=iterations,
        stopThr=tolerance,
        log=True,
        warn=False,
        warmstart=warm,
    )
    return plan, (log["log_u"], log["log_v"])


def soft_topk(scores: Float[Tensor, " n"], k: int, temperature: float) -> Float[Tensor, " n"]:
    """(n,) soft indicator of the k largest scores: in [0, 1], of sum k, differentiable.

    The entropic transport of n scores of mass 1/n to the targets 0, of mass 1 - k/n, and 1, of mass k/n, at the cost
    (s - y)^2 (Xie et al.: Differentiable Top-k with Optimal Transport, arXiv 2002.06504; Li et al.: Differentiable
    Transportation Pruning, arXiv 2307.08483): n times its second column. What Sinkhorn converges to is
    sigmoid((2 s_i - c) / temperature), with the one shift c that makes the sum k. It is found by bisection, and the
    gradient is the exact one at that c (first derivatives only).

    Args:
        scores: (n,) finite.
        k: how many, 0 to n; both ends give exact zeros and ones.
        temperature: of the entropy; towards 0 the hard top-k, towards infinity k / n everywhere.

    Raises:
        ValueError: k is out of range, the temperature is not positive, or a score is NaN or infinite.
    """
    n = len(scores)
    if not 0 <= k <= n:
        raise ValueError(f"k must be between 0 and {n}, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores must be finite")
    if k in (0, n):
        return torch.full_like(scores, k / max(n, 1)) + 0 * scores
    exact = scores.double()
    with torch.no_grad():
        shift = _shift(exact, k, temperature)
        chances = torch.sigmoid((2 * exact - shift) / temperature)
        slope = (chances * (1 - chances)).sum()
    # One Newton step from the solution moves nothing but carries the derivative of the shift.
    excess = torch.sigmoid((2 * exact - shift) / temperature).sum() - k
    if float(slope) > torch.finfo(exact.dtype).eps:
        shift = shift + temperature * excess / slope
    return torch.sigmoid((2 * exact - shift) / temperature).to(scores.dtype)


def _shift(scores: Tensor, k: int, temperature: float) -> Tensor:
    """() the c at which the soft indicators sum to k, to the last bit of float64."""
    middle = temperature * math.log(k / (len(scores) - k))
    low, high = 2 * scores.min() - middle, 2 * scores.max() - middle
    for _ in range(200):
        centre = (low + high) / 2
        if not bool((low < centre) & (centre < high)):
            break
        above = torch.sigmoid((2 * scores - centre) / temperature).sum() > k
        low, high = torch.where(above, centre, low), torch.where(above, high, centre)
    return (low + high) / 2


def _check(costs: Any, sources: Any, targets: Any) -> None:
    if costs.ndim != 2 or (len(sources), len(targets)) != tuple(costs.shape):
        raise ValueError(
            f"costs must be (sources, targets) = ({len(sources)}, {len(targets)}), got {tuple(costs.shape)}"
        )
    for what, values in (("costs", costs), ("sources", sources), ("targets", targets)):
        reject_nan(values, what)
        if bool(torch.isinf(values).any()):
            raise ValueError(f"{what} must be finite")
    if bool((sources < 0).any()) or bool((targets < 0).any()):
        raise ValueError("masses must not be negative")
    given, wanted = float(sources.double().sum()), float(targets.double().sum())
    if abs(given - wanted) > 1e-5 * max(given, wanted):
        raise ValueError(f"sources hold a mass of {given:g}, targets want {wanted:g}")
