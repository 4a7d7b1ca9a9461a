"""Small numerical primitives that every domain shares. Plain functions of tensors, without global random state."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def reject_nan(scores: Tensor, what: str = "scores") -> None:
    """Raise ValueError with a count and the first index if `scores` holds NaN."""
    nan = torch.isnan(scores)
    count = int(nan.sum())
    if count:
        first = int(nan.flatten().nonzero()[0])
        raise ValueError(f"{what} hold {count} NaN among {scores.numel()} values, the first at index {first}")


def topk_mask(scores: Float[Tensor, " n"], k: int) -> Bool[Tensor, " n"]:
    """True for exactly the `k` highest scores; among equal scores the lower index wins.

    Args:
        scores: (n,) any real dtype, infinities allowed.
        k: how many, 0 to n.

    Raises:
        ValueError: k is out of range, or scores hold NaN.
    """
    if scores.ndim != 1:
        raise ValueError(f"scores must be one-dimensional, got shape {tuple(scores.shape)}")
    if not 0 <= k <= len(scores):
        raise ValueError(f"k must be between 0 and {len(scores)}, got {k}")
    reject_nan(scores)
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = torch.topk(scores, k, sorted=False).values.min()
    above = scores > threshold
    tied = scores == threshold
    return above | (tied & (tied.cumsum(0) <= k - above.sum()))


def order_by_score(scores: Float[Tensor, " n"]) -> Tensor:
    """(n,) int64 indices from the highest score to the lowest; among equal scores the lower index comes first."""
    reject_nan(scores)
    return torch.sort(scores, descending=True, stable=True).indices


def average_ranks(scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """(n,) float64 ranks in (0, 1): the highest score has the highest rank; equal scores share their mean rank."""
    reject_nan(scores)
    _, group, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    middle = last - counts.double() / 2
    return middle[group] / max(len(scores), 1)


def gumbel_noise(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """(n,) float64 samples of the standard Gumbel distribution, on the generator's device."""
    uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log(-torch.log(uniform.clamp_min(tiny)))


def gumbel_scores(probabilities: Float[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, " n"]:
    """(n,) float64 random scores whose top k are k draws without replacement in proportion to `probabilities`.

    Top-k of log p + Gumbel noise is successive sampling without replacement (Kool, van Hoof, Welling: Stochastic Beams
    and Where to Find Them, ICML 2019, section 3). Units of probability zero score -inf.

    Args:
        probabilities: (n,) non-negative, of any sum.
        generator: the source of randomness.

    Raises:
        ValueError: a probability is NaN, negative or infinite.
    """
    reject_nan(probabilities, "probabilities")
    if bool((probabilities < 0).any()) or bool(torch.isinf(probabilities).any()):
        raise ValueError("probabilities must be finite and not negative")
    noise = gumbel_noise(len(probabilities), generator).to(probabilities.device)
    return torch.log(probabilities.double()) + noise


def sample_without_replacement(
    probabilities: Float[Tensor, " n"], k: int, generator: torch.Generator
) -> Bool[Tensor, " n"]:
    """True for `k` units drawn one after another without replacement, in proportion to `probabilities`.

    Args:
        probabilities: (n,) non-negative, of any sum.
        k: how many, at most the number of units with a positive probability.
        generator: the source of randomness.

    Raises:
        ValueError: a probability is NaN, negative or infinite, or too few are positive.
    """
    positive = int((probabilities > 0).sum())
    if k > positive:
        raise ValueError(f"cannot draw {k} units: only {positive} of {len(probabilities)} have a positive probability")
    return topk_mask(gumbel_scores(probabilities, generator), k)
