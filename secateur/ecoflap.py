"""From coarse to fine: how much each layer keeps, by forward passes only; which of its weights, by what it sees.

ECoFLaP (Sung et al., arXiv 2310.02998) scores whole layers by zeroth-order gradients (`ZerothOrder`), splits the budget
over them (`layer_counts`), and prunes each with Wanda or SparseGPT (`secateur.oneshot`) at `Unstructured(count /
size)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.importance.objective import Objective
from secateur.units import Prunable


@dataclass(frozen=True)
class ZerothOrder:
    """Mean over batches and probes of |L(w + h z) - L(w - h z)| / 2h, with only that parameter moved by a normal z.

    The square of the difference quotient has the mean |g|^2, and its absolute value sqrt(2 / pi) |g|: an estimate of
    the norm of the gradient from forward passes alone, without a graph ("MEZO-GradOnly" in the released code, from
    where the step is).

    Args:
        probes: directions for each parameter; two passes over the objective each.
        step: h.
        seed: of the directions.
    """

    probes: int = 1
    step: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 1 or not self.step > 0:
            raise ValueError(f"probes must be at least 1 and step above 0, got {self.probes} and {self.step}")

    @torch.no_grad()
    def layers(self, target: Prunable, objective: Objective, params: tuple[str, ...]) -> dict[str, float]:
        """Parameter -> its score. The target's tensors are moved in place meanwhile, and given back bit for bit.

        Args:
            target: what is scored.
            objective: called twice a probe; what its losses depend on is `target.tensors()`.
            params: the weights of the layers that share the budget.

        Raises:
            ValueError: a parameter is missing, or a loss is not finite.
        """
        tensors = target.tensors()
        missing = [name for name in params if name not in tensors]
        if missing:
            raise ValueError(f"no parameters {missing}; the target has {sorted(tensors)}")
        source = torch.Generator().manual_seed(self.seed)
        return {name: self._score(name, tensors[name], target, objective, source) for name in params}

    def _score(
        self, name: str, tensor: Tensor, target: Prunable, objective: Objective, source: torch.Generator
    ) -> float:
        slopes = []
        for _ in range(self.probes):
            direction = torch.randn(tensor.shape, generator=source, dtype=torch.float32).to(tensor)
            sides = []
            for sign in (1, -1):
                with _moved(tensor, sign * self.step * direction):
                    sides.append([float(loss) for loss in objective.losses(target)])
            slopes += [abs(ahead - behind) / (2 * self.step) for ahead, behind in zip(*sides, strict=True)]
        if not slopes:
            raise ValueError("the objective gave no losses")
        mean = math.fsum(slopes) / len(slopes)
        if not math.isfinite(mean):
            raise ValueError(f"a loss is not finite where {name!r} is moved by {self.step} of a normal direction")
        return mean


@contextmanager
def _moved(tensor: Tensor, by: Tensor) -> Iterator[None]:
    before = tensor.detach().clone()
    try:
        tensor.add_(by)
        yield
    finally:
        tensor.copy_(before)


def layer_counts(
    scores: Mapping[str, float], sizes: Mapping[str, int], keep: float, spread: float = 0.1
) -> dict[str, int]:
    """How many weights each layer keeps: floor(keep * all) in total, exactly.

    Each keeps a share of keep - spread at least, and what that leaves is given out in proportion to the scores, up to
    whole layers (the released code's rule, and its spread); rounded by largest remainders. So equal scores of equal
    sizes are uniform pruning. With a spread of 0 it is uniform whatever the scores.

    Args:
        scores: layer -> not negative.
        sizes: layer -> number of weights.
        keep: 0 to 1 of all weights.
        spread: by how much the sparsity of a layer may exceed the mean.

    Raises:
        ValueError: layers differ, or a number is out of range.
    """
    if set(scores) != set(sizes) or not sizes:
        raise ValueError(f"scores and sizes must be of the same layers, got {sorted(scores)} and {sorted(sizes)}")
    if not 0 <= keep <= 1 or not spread >= 0:
        raise ValueError(f"keep must be between 0 and 1 and spread not negative, got {keep} and {spread}")
    if not all(math.isfinite(score) and score >= 0 for score in scores.values()):
        raise ValueError(f"scores must be finite and not negative, got {dict(scores)}")
    names = list(sizes)
    total = math.floor(keep * sum(sizes.values()) * (1 + 1e-12))
    least = {name: sizes[name] * max(0.0, keep - spread) for name in names}
    # Layers of no importance get something only once all others are whole.
    weights = {name: max(scores[name], 1e-12 * max(scores.values())) or 1.0 for name in names}

    def shares(scale: float) -> dict[str, float]:
        return {name: min(sizes[name], least[name] + scale * weights[name]) for name in names}

    low, high = 0.0, max(sizes.values()) / min(weights.values())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle).values()) <= total else (low, middle)
    wanted = shares(low)
    counts = {name: min(sizes[name], math.floor(wanted[name] + 1e-9)) for name in names}
    by_remainder = sorted(names, key=lambda name: counts[name] - wanted[name])
    while sum(counts.values()) != total:
        change = 1 if sum(counts.values()) < total else -1
        for name in by_remainder:
            if sum(counts.values()) != total and 0 <= counts[name] + change <= sizes[name]:
                counts[name] += change
    return counts
