"""Mean and covariance of vectors that come in batches, from as many processes as there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from secateur.metrics.distribution.samples import check_pair, checked


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and scatter of vectors, in float64: D * D numbers, however many vectors there were.

    `a + b` are the moments of both sets together (Chan, Golub and LeVeque 1983, eq. 2.1), but for the last bits, which
    depend on how the vectors were split.

    Args:
        count: number of vectors N.
        mean: (D,).
        scatter: (D, D) sum of the outer products of the centred vectors.
    """

    count: int
    mean: Float64[Tensor, " D"]
    scatter: Float64[Tensor, "D D"]

    @classmethod
    def of(cls, vectors: Float[Tensor, "N D"]) -> Self:
        """Those of one batch.

        Raises:
            ValueError: the vectors are not (N, D), or some are not finite; says how many.
        """
        vectors = checked(vectors)
        mean = vectors.mean(dim=0)
        centred = vectors - mean
        return cls(len(vectors), mean, centred.T @ centred)

    @classmethod
    def over(cls, batches: Iterable[Float[Tensor, "N D"]]) -> Self:
        """Those of batches, one after another.

        Raises:
            ValueError: there is no batch, or one of them is bad.
        """
        total: Self | None = None
        for batch in batches:
            total = cls.of(batch) if total is None else total + cls.of(batch)
        if total is None:
            raise ValueError("moments need at least one batch of vectors")
        return total

    def __add__(self, other: Self) -> Self:
        check_pair(self.mean, other.mean)
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return type(self)(count, mean, self.scatter + other.scatter + between)

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @property
    def singular(self) -> bool:
        """Whether N is so small (at most D) that the covariance must be singular."""
        return self.count <= self.dimensions

    def covariance(self) -> Float64[Tensor, "D D"]:
        """The unbiased covariance, divided by N - 1.

        Raises:
            ValueError: there is only one vector.
        """
        if self.count < 2:
            raise ValueError("a covariance needs at least 2 vectors, got 1")
        return self.scatter / (self.count - 1)


def gather_moments(own: Moments) -> Moments:
    """The moments of what all processes of torch.distributed saw together, the same bits in each of them.

    Without a process group, `own`.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    shares: list[tuple[int, Tensor, Tensor]] = [None] * torch.distributed.get_world_size()  # type: ignore[list-item]
    torch.distributed.all_gather_object(shares, (own.count, own.mean.cpu(), own.scatter.cpu()))
    total, *others = (Moments(*share) for share in shares)
    for other in others:
        total = total + other
    return total
