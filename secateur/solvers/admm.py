"""The alternating direction method of multipliers: a loss, and a set that only a projection knows.

min f(x) over x in C is split into x, which f's own optimiser moves, and z, its copy in C (Boyd et al.: Distributed
Optimization and Statistical Learning via ADMM, 2011, sections 3.1 to 3.4 and 9). Sparse sets are not convex: for them
it is a heuristic that pruning has used since Zhang et al. (arXiv 1804.03294).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.maths import reject_nan, topk_mask

Project = Callable[[Tensor], Tensor]
"""The nearest point of a set."""


def onto_largest(k: int) -> Project:
    """The projection onto tensors of at most k non-zeros: the k entries of largest magnitude stay."""

    def project(x: Tensor) -> Tensor:
        return torch.where(topk_mask(x.flatten().abs(), k).reshape(x.shape), x, 0)

    return project


def onto_l1_ball(radius: float) -> Project:
    """The projection onto tensors whose absolute values sum to at most `radius`.

    Duchi et al.: Efficient Projections onto the l1-Ball, 2008, figure 1: a soft threshold, found by sorting.

    Raises:
        ValueError: the radius is not positive.
    """
    if not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}")
    return partial(_shrunk_to, radius)


def _shrunk_to(radius: float, x: Tensor) -> Tensor:
    reject_nan(x, "what is projected")
    magnitudes = x.abs().flatten()
    if float(magnitudes.sum()) <= radius:
        return x.clone()
    ordered = magnitudes.sort(descending=True).values
    excess = (ordered.cumsum(0) - radius) / torch.arange(1, len(ordered) + 1).to(ordered)
    # The last index at which the entry is above its threshold.
    return soft_threshold(x, float(excess[int((ordered > excess).sum()) - 1]))


def soft_threshold(x: Float[Tensor, "*shape"], threshold: float) -> Float[Tensor, "*shape"]:
    """sign(x) max(|x| - threshold, 0): the proximal step of `threshold` times the L1 norm."""
    return x.sign() * (x.abs() - threshold).clamp_min(0)


@dataclass(frozen=True)
class Residuals:
    """How far from done: both fall to 0.

    Args:
        primal: root mean square of x - z.
        dual: rho times the root mean square of the last change of z.
    """

    primal: float
    dual: float


class Split:
    """The scaled form around any optimiser: add `penalty(x)` to the loss, and call `dual_step(x)` now and then.

    penalty = rho / 2 |x - z + u|^2; dual step: z = P(x + u), u += x - z. With `balance`, rho is doubled where the
    primal residual is more than `balance` times the dual one, halved where it is the other way round, and u rescaled
    with it (Boyd et al., section 3.4.1, with their 10 and 2).

    Args:
        start: x at the start, which z begins from, projected.
        project: the set.
        rho: weight of the penalty, above 0.
        balance: see above; None leaves rho alone.

    Raises:
        ValueError: rho is not positive, or the start holds NaN.
    """

    def __init__(self, start: Tensor, project: Project, rho: float, balance: float | None = 10.0) -> None:
        if not rho > 0:
            raise ValueError(f"rho must be above 0, got {rho}")
        reject_nan(start, "the start")
        self.project = project
        self.rho = rho
        self.balance = balance
        self.z = project(start.detach())
        self.u = torch.zeros_like(self.z)

    def penalty(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        """rho / 2 |x - z + u|^2, differentiable in x."""
        return 0.5 * self.rho * (x - self.z + self.u).square().sum()

    @torch.no_grad()
    def dual_step(self, x: Float[Tensor, "*shape"]) -> Residuals:
        """Move z and u, and rho with them.

        Raises:
            ValueError: x holds NaN: the loss or the penalty has diverged.
        """
        reject_nan(x, "x")
        before, self.z = self.z, self.project(x + self.u)
        self.u = self.u + x - self.z
        scale = max(x.numel(), 1) ** 0.5
        residuals = Residuals(float((x - self.z).norm()) / scale, self.rho * float((self.z - before).norm()) / scale)
        if self.balance is not None:
            if residuals.primal > self.balance * residuals.dual:
                self.rescale(2.0)
            elif residuals.dual > self.balance * residuals.primal:
                self.rescale(0.5)
        return residuals

    def rescale(self, factor: float) -> None:
        """Multiply rho; u, which is the multiplier over rho, shrinks with it."""
        self.rho *= factor
        self.u = self.u / factor


@torch.no_grad()
def minimise_quadratic(
    hessian: Float[Tensor, "d d"],
    linear: Float[Tensor, "rows d"],
    project: Project,
    rho: float | None = None,
    iterations: int = 500,
    tolerance: float = 1e-6,
) -> Float[Tensor, "rows d"]:
    """z in the set that makes 0.5 tr z H z^T - tr linear z^T small; the least where the set is convex.

    The Hessian is factored once into its eigenvectors, so that a step costs two products whatever rho becomes. Rho is
    balanced in the first half of the iterations, and then rests.

    Args:
        hessian: symmetric, positive semi-definite.
        linear: b of each row; H w for a fit to w.
        project: the set, of (rows, d) tensors.
        rho: where to begin; None takes the Hessian's largest eigenvalue: over sparse sets a smaller one
            makes z jump between supports.
        iterations: the most.
        tolerance: both residuals, relative to the root mean square of z (the dual one over rho), at which to stop.

    Raises:
        ValueError: something holds NaN, or rho is not positive.
    """
    reject_nan(hessian, "the Hessian")
    reject_nan(linear, "the linear term")
    values, vectors = torch.linalg.eigh(hessian)
    start = float(values.max()) if rho is None else rho
    split = Split(torch.zeros_like(linear), project, start)
    for index in range(iterations):
        if index > iterations // 2:
            split.balance = None
        target = linear + split.rho * (split.z - split.u)
        x = ((target @ vectors) / (values.clamp_min(0) + split.rho)) @ vectors.T
        weight = split.rho
        residuals = split.dual_step(x)
        scale = tolerance * float(split.z.square().mean().sqrt())
        if residuals.primal <= scale and residuals.dual <= weight * scale:
            break
    return split.z
