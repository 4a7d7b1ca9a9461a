"""Kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401, section 4): unbiased, so good at small N."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from secateur.metrics.distribution.samples import check_pair, checked


@dataclass(frozen=True, slots=True)
class KernelDistance:
    """Squared maximum mean discrepancies of random subsets.

    Args:
        mean: over subsets; may lie a little below 0, for it is unbiased.
        std: over subsets, as a population's: how much one subset scatters, not how sure the mean is.
        subsets: how many.
        subset_size: vectors of each set in a subset.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int


def kernel_distance(
    one: Float[Tensor, "N D"],
    other: Float[Tensor, "M D"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """KID between two sets of vectors, over random subsets without repeats in them; the same seed gives the same.

    Args:
        one: vectors of one set.
        other: vectors of the other.
        subsets: how many to draw.
        subset_size: vectors of each set in a subset.
        seed: of the draws.

    Raises:
        ValueError: the vectors differ in length, are not (N, D) or not finite; `subsets` is below 1, or `subset_size`
            not between 2 and the number of vectors.
    """
    one, other = checked(one), checked(other)
    check_pair(one, other)
    least = min(len(one), len(other))
    if not 2 <= subset_size <= least:
        raise ValueError(f"subset_size must be 2 to {least}, the vectors of the smaller set; got {subset_size}")
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets}")
    generator = torch.Generator().manual_seed(seed)
    values = [
        squared_discrepancy(_drawn(one, subset_size, generator), _drawn(other, subset_size, generator))
        for _ in range(subsets)
    ]
    spread = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(float(spread.mean()), float(spread.std(correction=0)), subsets, subset_size)


def squared_discrepancy(one: Float[Tensor, "N D"], other: Float[Tensor, "M D"]) -> float:
    """The unbiased squared maximum mean discrepancy under the kernel (x . y / D + 1)^3 (eq. 4): no pair with itself.

    Raises:
        ValueError: a set has fewer than 2 vectors, or what `checked` and `check_pair` raise.
    """
    one, other = checked(one), checked(other)
    check_pair(one, other)
    if min(len(one), len(other)) < 2:
        raise ValueError(f"the unbiased discrepancy needs 2 vectors of each set, got {len(one)} and {len(other)}")
    return float(_within(one) + _within(other) - 2 * _kernel(one, other).mean())


def _drawn(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return vectors[torch.randperm(len(vectors), generator=generator)[:count].to(vectors.device)]


def _within(vectors: Float64[Tensor, "N D"]) -> Tensor:
    kernel = _kernel(vectors, vectors)
    return (kernel.sum() - kernel.trace()) / (len(vectors) * (len(vectors) - 1))


def _kernel(one: Float64[Tensor, "N D"], other: Float64[Tensor, "M D"]) -> Float64[Tensor, "N M"]:
    return (one @ other.T / one.shape[1] + 1) ** 3
