"""Iterative hard thresholding: a convex quadratic's least value over vectors of at most k non-zero entries.

CHITA (Benbaki et al.: Fast as CHITA, arXiv 2302.14623, section 3) prunes by least squares over per-sample gradients:
min 0.5 |y - A w|^2 + 0.5 ridge |w - w0|^2 over |w|_0 <= k. Its p x p Hessian A^T A + ridge I is never formed: with n
rows, a step costs O(n p) and the exact solve on a support O(n^2 k), by the Woodbury identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.maths import reject_nan, topk_mask
from secateur.solvers.obs import cholesky, inverse_factor


class Quadratic(Protocol):
    """A strictly convex quadratic of a vector."""

    def value(self, w: Float[Tensor, " p"]) -> float:
        """What is to be small."""
        ...

    def gradient(self, w: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Its derivative."""
        ...

    def product(self, v: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """The Hessian times `v`."""
        ...

    def solve(self, support: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The entries on the support of the least vector that is 0 elsewhere."""
        ...

    def inverse_diagonal(self, support: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The diagonal of the inverse of the Hessian's part on the support."""
        ...


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """0.5 |y - A w|^2 + 0.5 ridge |w - centre|^2, in O(n p) memory.

    Args:
        rows: A, (n, p).
        targets: y, (n,).
        centre: (p,).
        ridge: above 0.

    Raises:
        ValueError: shapes do not agree, something holds NaN or infinities, or the ridge is not positive.
    """

    rows: Float[Tensor, "n p"]
    targets: Float[Tensor, " n"]
    centre: Float[Tensor, " p"]
    ridge: float

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or (len(self.targets), len(self.centre)) != self.rows.shape:
            raise ValueError(
                f"rows must be (targets, centre), got {tuple(self.rows.shape)} for {len(self.targets)} targets and a "
                f"centre of {len(self.centre)}"
            )
        if not self.ridge > 0:
            raise ValueError(f"ridge must be above 0, got {self.ridge}")
        for what, values in (("rows", self.rows), ("targets", self.targets), ("centre", self.centre)):
            wrong = values.numel() - int(torch.isfinite(values).sum())
            if wrong:
                raise ValueError(f"{what} hold {wrong} values that are NaN or infinite, of {values.numel()}")

    def value(self, w: Float[Tensor, " p"]) -> float:
        fit = (self.targets - self.rows @ w).double().square().sum()
        return 0.5 * float(fit + self.ridge * (w - self.centre).double().square().sum())

    def gradient(self, w: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        return self.rows.T @ (self.rows @ w - self.targets) + self.ridge * (w - self.centre)

    def product(self, v: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        return self.rows.T @ (self.rows @ v) + self.ridge * v

    def solve(self, support: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        # As an offset from the centre: its ridge term then has no linear part, and nothing is divided by the ridge.
        rows, centre = self.rows[:, support], self.centre[support]
        residual = self.targets - rows @ centre
        if len(self.targets) < len(support):
            return centre + rows.T @ _solve(rows @ rows.T, self.ridge, residual)
        return centre + _solve(rows.T @ rows, self.ridge, rows.T @ residual)

    def inverse_diagonal(self, support: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        rows = self.rows[:, support]
        if len(support) <= len(rows):
            return inverse_factor(_shifted(rows.T @ rows, self.ridge)).square().sum(0)
        # Woodbury: (A^T A + r I)^-1 = (I - A^T (A A^T + r I)^-1 A) / r.
        core = cholesky(_shifted(rows @ rows.T, self.ridge))
        explained = torch.linalg.solve_triangular(core, rows, upper=False).square().sum(0)
        tiny = torch.finfo(explained.dtype).eps
        return (1 - explained).clamp_min(tiny) / self.ridge


@dataclass(frozen=True, eq=False)
class AroundWeights:
    """0.5 (w - centre)^T H (w - centre) with a dense H, such as a layer's damped Gram matrix."""

    hessian: Float[Tensor, "p p"]
    centre: Float[Tensor, " p"]

    def value(self, w: Float[Tensor, " p"]) -> float:
        return 0.5 * float((w - self.centre).double() @ self.product(w - self.centre).double())

    def gradient(self, w: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        return self.product(w - self.centre)

    def product(self, v: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        return self.hessian @ v

    def solve(self, support: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        gone = torch.ones_like(self.centre)
        gone[support] = 0
        pull = self.product(self.centre * gone)[support]
        factor = cholesky(self.hessian[support][:, support])
        return self.centre[support] + torch.cholesky_solve(pull[:, None], factor)[:, 0]

    def inverse_diagonal(self, support: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        return inverse_factor(self.hessian[support][:, support]).square().sum(0)


def _shifted(matrix: Tensor, ridge: float) -> Tensor:
    matrix = matrix.clone()
    matrix.diagonal().add_(ridge)
    return matrix


def _solve(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[:, None], cholesky(_shifted(matrix, ridge)))[:, 0]


def hard_threshold(w: Float[Tensor, " p"], k: int) -> Float[Tensor, " p"]:
    """The k entries of largest magnitude, the others 0: the projection onto vectors of at most k non-zeros."""
    return torch.where(topk_mask(w.abs(), k), w, 0)


@dataclass
class HardThresholding:
    """Monotone iterative hard thresholding with momentum, a line search, and an exact solve on each new support.

    There are two starts: the largest weights, and what is left of a staged elimination (the surgeon's: the entries of
    least w_i^2 / [H^-1]_ii go, the rest is solved again). From each, and from the point extrapolated by Nesterov's
    momentum, a gradient step of the length that is best on the present support is thresholded, then steps twice as long
    while they are better; and one of 1 / L, which cannot fail to descend. What comes out is solved exactly on its
    support, and accepted only if it lowers the objective. CHITA's algorithm 1 has the line search and the solve; the
    momentum is Blumensath's (Accelerated iterative hard thresholding, 2012). The elimination and the single swaps at
    the end are this project's choice, as is every default here: hard thresholding alone stays in poor local minima of
    small ill-conditioned problems.

    Args:
        iterations: the most, for each start.
        stages: steps of the elimination, from p down to k in geometric progression; p - k of them are the exact greedy
            surgeon.
        swaps: the most exchanges of a kept entry for another at the end of each start; each tries pairs of the entries
            that first-order theory ranks best, `candidates` of either kind.
        candidates: see above.
        tolerance: relative decrease at which to stop.
    """

    iterations: int = 50
    stages: int = 10
    swaps: int = 20
    candidates: int = 4
    tolerance: float = 1e-6
    objectives: list[float] = field(default_factory=list, init=False)
    """The objective after each accepted step of the last minimisation, from the better start."""

    def minimise(self, problem: Quadratic, start: Float[Tensor, " p"], k: int) -> Float[Tensor, " p"]:
        """A vector of at most k non-zeros that no step above improves.

        Args:
            problem: what is minimised.
            start: (p,) where to begin, the dense weights; thresholded first.
            k: non-zeros, 0 to p.

        Raises:
            ValueError: k is out of range, or something holds NaN.
        """
        reject_nan(start, "the start")
        if not 0 <= k <= len(start):
            raise ValueError(f"k must be between 0 and {len(start)}, got {k}")
        if k == 0:
            self.objectives = [problem.value(torch.zeros_like(start))]
            return torch.zeros_like(start)
        starts = (hard_threshold(start, k), self._eliminated(problem, start, k))
        runs = [self._swap(problem, *self._descend(problem, each, k)) for each in starts]
        best, self.objectives = min(runs, key=lambda run: run[1][-1])
        return best

    def _eliminated(self, problem: Quadratic, w: Tensor, k: int) -> Tensor:
        counts = torch.logspace(math.log(len(w)), math.log(k), self.stages + 1, math.e, dtype=torch.float64)[1:]
        for count in [*counts.ceil().int().tolist()[:-1], k]:
            support = (w != 0).nonzero()[:, 0]
            score = torch.full_like(w, -1.0)
            score[support] = w[support].square() / problem.inverse_diagonal(support)
            w = _polished(problem, torch.where(topk_mask(score, count), w, 0))
        return w

    def _descend(self, problem: Quadratic, w: Tensor, k: int) -> tuple[Tensor, list[float]]:
        w, before = _polished(problem, w), w
        values = [problem.value(w)]
        lipschitz = _largest_eigenvalue(problem, w)
        momentum = 1.0
        for _ in range(self.iterations):
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = w + (momentum - 1) / following * (w - before)
            momentum = following
            steps = [step for origin in (ahead, w) for step in self._steps(problem, origin, w != 0, k, lipschitz)]
            step = min(steps, key=problem.value)
            step = min((step, _polished(problem, step)), key=problem.value)
            value = problem.value(step)
            if not value < values[-1]:
                break
            converged = values[-1] - value <= self.tolerance * abs(values[-1])
            before, w = w, step
            values.append(value)
            if converged:
                break
        return w, values

    def _steps(self, problem: Quadratic, origin: Tensor, support: Tensor, k: int, lipschitz: float) -> Iterator[Tensor]:
        """Thresholded gradient steps: 1 / L, the best on the support, and doublings of it while they are better."""
        gradient = problem.gradient(origin)
        yield hard_threshold(origin - gradient / lipschitz, k)
        inside = torch.where(support, gradient, 0)
        curvature = float(inside @ problem.product(inside))
        length = float(inside @ inside) / curvature if curvature > 0 else 2 / lipschitz
        value = torch.inf
        for _ in range(6):
            step = hard_threshold(origin - length * gradient, k)
            found = problem.value(step)
            if not found < value:
                return
            yield step
            value, length = found, 2 * length

    def _swap(self, problem: Quadratic, w: Tensor, values: list[float]) -> tuple[Tensor, list[float]]:
        for _ in range(self.swaps):
            better = self._better_neighbour(problem, w)
            if better is None:
                break
            w = better
            values = [*values, problem.value(w)]
        return w, values

    def _better_neighbour(self, problem: Quadratic, w: Tensor) -> Tensor | None:
        kept, gone = (w != 0).nonzero()[:, 0], (w == 0).nonzero()[:, 0]
        if not len(kept) or not len(gone):
            return None
        costs = w[kept].square() / problem.inverse_diagonal(kept)
        leave = kept[costs.argsort(stable=True)[: self.candidates]]
        enter = gone[problem.gradient(w)[gone].abs().argsort(descending=True, stable=True)[: self.candidates]]
        present = problem.value(w)
        for old in leave:
            for new in enter:
                trial = w.clone()
                trial[new], trial[old] = 1, 0
                trial = _polished(problem, trial)
                if problem.value(trial) < present * (1 - self.tolerance):
                    return trial
        return None


def _polished(problem: Quadratic, w: Tensor) -> Tensor:
    """The least vector on the support of `w`."""
    support = (w != 0).nonzero()[:, 0]
    result = torch.zeros_like(w)
    if len(support):
        result[support] = problem.solve(support)
    return result


def _largest_eigenvalue(problem: Quadratic, like: Tensor, iterations: int = 20) -> float:
    """An estimate from above of the Hessian's largest eigenvalue: power iteration from a fixed vector, and a tenth."""
    v = torch.linspace(1, 2, len(like)).to(like)
    norm = 1.0
    for _ in range(iterations):
        v = problem.product(v / v.norm())
        norm = float(v.norm())
        if not norm > 0:
            return 1.0
    return 1.1 * norm
