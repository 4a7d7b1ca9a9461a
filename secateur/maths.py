"""Small numerical primitives that every domain shares. Plain functions of tensors, without global random state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

_PIECE = 1 << 18
"""Values that are squared at a time."""


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


def root_mean_square(values: Float[Tensor, "*shape"]) -> float:
    """The root of the mean of the squares; 0 for no values."""
    if not values.numel():
        return 0.0
    pieces = (piece.double() for piece in values.detach().reshape(-1).split(_PIECE))
    return float(torch.stack([torch.dot(piece, piece) for piece in pieces]).sum() / values.numel()) ** 0.5


def mean_tensors(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> mean over the parts, in float32 or better; all parts have the same names and shapes.

    Raises:
        ValueError: there are no parts.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for part in parts:
        count += 1
        _add(total, part)
        # Else it would be held while the next one is made.
        del part
    if not count:
        raise ValueError("there is nothing to take a mean of")
    return {name: value.div_(count) for name, value in total.items()}


def _add(total: dict[str, Tensor], part: Mapping[str, Tensor]) -> None:
    for name, value in part.items():
        if name in total:
            total[name] += value
        else:
            total[name] = value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)


def straight_through(forward: Float[Tensor, "*shape"], backward: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values of `forward`, exactly, with the gradient of the finite `backward` (Bengio et al. 2013, 1308.3432)."""
    return forward.detach() + (backward - backward.detach())


def rademacher(
    like: Float[Tensor, "*shape"], generator: torch.Generator, dtype: torch.dtype | None = None
) -> Shaped[Tensor, "*shape"]:
    """Independent signs, -1 or +1 with equal chance, of the shape, dtype and device of `like`, or of another dtype.

    Drawn on the generator's device, so that a CPU generator gives the same signs to tensors of every device.
    """
    bits = torch.randint(0, 2, like.shape, generator=generator, device=generator.device, dtype=torch.int8)
    return bits.mul_(2).sub_(1).to(device=like.device, dtype=dtype or like.dtype)
