"""What every distance between sets of images checks first: vectors of one length, all of them finite."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def checked(vectors: Float[Tensor, "N D"], what: str = "features") -> Float64[Tensor, "N D"]:
    """The vectors in float64.

    Raises:
        ValueError: they are not (N, D) floats with N and D at least 1, or some are not finite; says how many.
    """
    if vectors.ndim != 2 or not vectors.numel() or not vectors.is_floating_point():
        raise ValueError(
            f"{what} must be (N, D) floats, N and D at least 1; got {vectors.dtype} {tuple(vectors.shape)}"
        )
    broken = int((~vectors.isfinite()).any(dim=1).sum())
    if broken:
        raise ValueError(f"{broken} of {len(vectors)} vectors of the {what} are not finite")
    return vectors.detach().to(torch.float64)


def check_pair(one: Tensor, other: Tensor) -> None:
    """Raise ValueError unless the vectors of both sets have one length."""
    if one.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"features of {one.shape[-1]} and of {other.shape[-1]} dimensions cannot be compared: use one network"
        )
