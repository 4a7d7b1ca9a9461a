"""The Frechet distance between two sets of vectors, each taken for a Gaussian (FID: Heusel et al. 2017, eq. 6).

|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) with unbiased covariances, in float64. It is biased upwards, by
(D^2 + 5 D) / 4 (1/N + 1/M) for N and M vectors of one standard normal: distances at different N cannot be compared, and
each should stand beside the distance of real vectors at the same N.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from secateur.metrics.distribution.moments import Moments
from secateur.metrics.distribution.samples import check_pair, checked


def frechet_distance(one: Moments, other: Moments) -> float:
    """The squared Frechet distance of two Gaussians, from their moments.

    tr (S1 S2)^(1/2) is the sum of the square roots of the eigenvalues of R S2 R, R being the symmetric root of S1; that
    holds where a covariance is singular, too (N at most D, constant vectors).

    Raises:
        ValueError: the vectors differ in length, or a set has only one.
    """
    return _distance_by_root(one, other, _root(one.covariance()))


def frechet_distance_of_vectors(one: Float[Tensor, "N D"], other: Float[Tensor, "M D"]) -> float:
    """The same from the vectors themselves, for N and M far below D: no D x D matrix is made.

    The trace term is the sum of the singular values of A B^T, A and B being the centred vectors over the roots of N - 1
    and M - 1.

    Raises:
        ValueError: the vectors differ in length, are not (N, D), or not finite; or a set has only one.
    """
    one, other = checked(one), checked(other)
    check_pair(one, other)
    a, b = _scaled(one), _scaled(other)
    traces = a.square().sum() + b.square().sum()
    return _distance(one.mean(dim=0) - other.mean(dim=0), traces, torch.linalg.svdvals(a @ b.T).sum())


def frechet_floor(
    held_out: Float[Tensor, "H D"], reference: Moments, count: int, *, draws: int = 1, seed: int = 0
) -> float:
    """What `count` real vectors score against the reference: no sampler can be expected to score less.

    Args:
        held_out: vectors of real images that are not in the reference.
        reference: what samples are compared with.
        count: as many as there are samples.
        draws: random choices of `count` to take the mean over.
        seed: of the choices.

    Raises:
        ValueError: there are fewer than `count` held-out vectors, or `draws` is below 1.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if count > len(held_out):
        raise ValueError(f"a floor at N = {count} needs as many real images apart from the reference: {len(held_out)}")
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(draws):
        chosen = torch.randperm(len(held_out), generator=generator)[:count]
        distances.append(frechet_distance(Moments.of(held_out[chosen.to(held_out.device)]), reference))
    return sum(distances) / draws


def frechet_error(vectors: Float[Tensor, "N D"], reference: Moments, *, groups: int = 10, seed: int = 0) -> float:
    """The standard error of the distance between vectors and a reference, as other samples would move it.

    A jackknife that leaves out one random group at a time (Shao and Tu 1995, section 2.3): the root of (G - 1) / G
    times the sum of the squares of the G distances about their mean. The reference stands still.

    Args:
        vectors: of the samples.
        reference: what they are compared with.
        groups: G, at least 2; each is left out once.
        seed: of who is in which group.

    Raises:
        ValueError: there are fewer than 2 groups, or fewer than 3 vectors a group; or what `frechet_distance` raises.
    """
    if groups < 2 or len(vectors) < 3 * groups:
        raise ValueError(f"a jackknife needs at least 2 groups of 3 vectors, got {len(vectors)} in {groups} groups")
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed)).to(vectors.device)
    parts = [Moments.of(vectors[part]) for part in order.tensor_split(groups)]
    root = _root(reference.covariance())
    distances = []
    for left_out in range(groups):
        first, *others = (part for index, part in enumerate(parts) if index != left_out)
        distances.append(_distance_by_root(reference, sum(others, start=first), root))
    values = torch.tensor(distances, dtype=torch.float64)
    return float(((groups - 1) / groups * (values - values.mean()).square().sum()).sqrt())


def _distance_by_root(one: Moments, other: Moments, root: Float64[Tensor, "D D"]) -> float:
    """The distance, given the symmetric root of the covariance of `one`."""
    check_pair(one.mean, other.mean)
    covariance = other.covariance()
    product = root @ covariance @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return _distance(one.mean - other.mean, one.covariance().trace() + covariance.trace(), cross)


def _root(covariance: Float64[Tensor, "D D"]) -> Float64[Tensor, "D D"]:
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _scaled(vectors: Float64[Tensor, "N D"]) -> Float64[Tensor, "N D"]:
    if len(vectors) < 2:
        raise ValueError("a covariance needs at least 2 vectors, got 1")
    return (vectors - vectors.mean(dim=0)) / (len(vectors) - 1) ** 0.5


def _distance(apart: Tensor, traces: Tensor, cross: Tensor) -> float:
    # Equal sets come out a rounding error below zero.
    return max(float(apart @ apart + traces - 2 * cross), 0.0)
