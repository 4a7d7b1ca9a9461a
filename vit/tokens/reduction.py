"""Which tokens became which: the map that a token pruner leaves, and the way back to the full length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reduction:
    """Tokens on their way to fewer tokens.

    Args:
        tokens: how many there were.
        kept: (batch, fewer) for each token after, a token before that it holds; it stands in that one's place.
        into: (batch, tokens) for each token before, the one after that it became part of, or -1 where it was dropped;
            None: all but the kept ones were dropped.
        shares: (batch, tokens) how much of each token before is in the one after; None: all of it.
    """

    tokens: int
    kept: Int64[Tensor, "batch fewer"]
    into: Int64[Tensor, "batch tokens"] | None = None
    shares: Float[Tensor, "batch tokens"] | None = None

    @property
    def fewer(self) -> int:
        """How many tokens there are after."""
        return self.kept.shape[1]

    @property
    def owners(self) -> Int64[Tensor, "batch tokens"]:
        """(batch, tokens) the token after that each one before is in, -1 where it was dropped."""
        if self.into is not None:
            return self.into
        owners = self.kept.new_full((self.kept.shape[0], self.tokens), -1)
        return owners.scatter(1, self.kept, _counting(self.kept))

    def apply(self, values: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch fewer width"]:
        """The values of the tokens after: those of the kept ones, or the weighted sums of what was merged."""
        if self.into is None:
            return take_rows(values, self.kept)
        there = (self.owners >= 0).to(values.dtype)
        shares = there if self.shares is None else there * self.shares.to(values.dtype)
        return self._summed(values * shares[..., None])

    def total(self, values: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch fewer"]:
        """Sums over the tokens in each token after, whatever their shares: the sizes after from those before."""
        if self.into is None:
            return values.gather(1, self.kept)
        return self._summed((values * (self.owners >= 0))[..., None])[..., 0]

    def any(self, flags: Bool[Tensor, "batch tokens"]) -> Bool[Tensor, "batch fewer"]:
        """Whether a token after holds one of the tokens with a flag."""
        if self.into is None:
            return flags.gather(1, self.kept)
        return self.total(flags.float()) > 0

    def restore(
        self, reduced: Float[Tensor, "batch fewer width"], fill: float | Float[Tensor, "batch tokens width"] = 0.0
    ) -> Float[Tensor, "batch tokens width"]:
        """The full length again, in the order of before.

        Args:
            reduced: tokens after; one that holds several is copied to all of them.
            fill: what stands where a token was dropped: a number, or the tokens of before.

        Raises:
            ValueError: `reduced` has another number of tokens than this map leaves.
        """
        if reduced.shape[1] != self.fewer:
            raise ValueError(f"this map leaves {self.fewer} tokens, so it cannot restore {reduced.shape[1]}")
        owners = self.owners
        spread = take_rows(reduced, owners.clamp_min(0))
        return torch.where((owners >= 0)[..., None], spread, fill)

    def then(self, second: Reduction) -> Reduction:
        """This map followed by another, as one.

        Raises:
            ValueError: the second does not begin with as many tokens as this one leaves.
        """
        if second.tokens != self.fewer:
            raise ValueError(f"a map that leaves {self.fewer} tokens cannot be followed by one of {second.tokens}")
        kept = self.kept.gather(1, second.kept)
        if self.into is None and second.into is None:
            return Reduction(self.tokens, kept)
        owners = self.owners
        there = owners.clamp_min(0)
        into = torch.where(owners >= 0, second.owners.gather(1, there), -1)
        shares = self.shares
        if second.shares is not None:
            later = second.shares.gather(1, there)
            shares = later if shares is None else shares * later
        return Reduction(self.tokens, kept, into, shares)

    def matrix(self) -> Float[Tensor, "batch fewer tokens"]:
        """The map as matrices, rows of which say what each token after is made of: for pictures and checks."""
        owners = self.owners
        whole = torch.zeros(len(owners), self.fewer, self.tokens, device=owners.device)
        shares = torch.ones_like(owners, dtype=whole.dtype) if self.shares is None else self.shares.to(whole.dtype)
        return whole.scatter_add(1, owners.clamp_min(0)[:, None], (shares * (owners >= 0))[:, None])

    @classmethod
    def identity(cls, batch: int, tokens: int, device: torch.device | None = None) -> Self:
        """Every token is kept."""
        return cls(tokens, torch.arange(tokens, device=device).expand(batch, -1))

    def _summed(self, values: Tensor) -> Tensor:
        """(batch, fewer, width) sums of the rows of `values` that go to the same token."""
        owners = self.owners
        batch, _, width = values.shape
        rows = owners.clamp_min(0) + _offsets(owners, self.fewer)
        summed = values.new_zeros(batch * self.fewer, width)
        return summed.index_add(0, rows.flatten(), values.reshape(-1, width)).view(batch, self.fewer, width)


def take_rows(values: Float[Tensor, "batch tokens width"], rows: Int64[Tensor, "batch fewer"]) -> Tensor:
    """(batch, fewer, width) the rows of each item of a batch; whole rows are copied, which a `gather` does not do."""
    batch, tokens, width = values.shape
    flat = (rows + _offsets(rows, tokens)).flatten()
    return values.reshape(batch * tokens, width).index_select(0, flat).view(batch, rows.shape[1], width)


def _offsets(rows: Tensor, tokens: int) -> Tensor:
    return torch.arange(rows.shape[0], device=rows.device)[:, None] * tokens


def _counting(like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device).expand(like.shape[0], -1)
