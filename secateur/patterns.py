"""Which weights of a matrix may stay together: any, so many of a row, n of every m, whole blocks, or a given mask.

A pattern turns scores into an exact mask, for a whole matrix or for a window of its columns; windows that follow one
another keep together what the whole would, so that a sweep over columns meets the same budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.maths import reject_nan, topk_mask


class Pattern(Protocol):
    """Exact masks from scores."""

    @property
    def together(self) -> int:
        """Neighbouring columns of a row that stay or go together."""
        ...

    def span(self, shape: torch.Size, window: int = 1) -> int:
        """How many columns a sweep decides at a time, given that it would like to decide `window` of them.

        Raises:
            ValueError: a matrix of this shape cannot have the pattern.
        """
        ...

    def mask(self, scores: Float[Tensor, "rows width"], start: int = 0) -> Bool[Tensor, "rows width"]:
        """Which weights stay of the columns from `start` on; all are, where the scores are the whole matrix."""
        ...


@dataclass(frozen=True)
class _Share:
    """A share of single weights: each is on its own, and a sweep may decide as many columns at a time as it likes.

    Args:
        keep: 0 to 1.
    """

    keep: float

    def __post_init__(self) -> None:
        _check_share(self.keep)

    @property
    def together(self) -> int:
        return 1

    def span(self, shape: torch.Size, window: int = 1) -> int:
        return window


@dataclass(frozen=True)
class Unstructured(_Share):
    """The share of all weights, wherever they are: floor(keep * rows * columns) of them.

    Args:
        keep: 0 to 1.
    """

    def mask(self, scores: Float[Tensor, "rows width"], start: int = 0) -> Bool[Tensor, "rows width"]:
        rows, width = scores.shape
        kept = _count(self.keep, rows * (start + width)) - _count(self.keep, rows * start)
        return topk_mask(scores.flatten(), kept).reshape(scores.shape)


@dataclass(frozen=True)
class PerRow(_Share):
    """The same share of each row: floor(keep * columns) of its weights (Wanda's comparison group).

    Args:
        keep: 0 to 1.
    """

    def mask(self, scores: Float[Tensor, "rows width"], start: int = 0) -> Bool[Tensor, "rows width"]:
        width = scores.shape[1]
        return _best_of_each(scores, _count(self.keep, start + width) - _count(self.keep, start))


@dataclass(frozen=True)
class NofM:
    """n of every m consecutive weights of a row, such as 2:4.

    Args:
        n: how many stay, 0 to m.
        m: how many compete, which must divide the number of columns.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 <= self.n <= self.m or self.m < 1:
            raise ValueError(f"n of m needs 0 <= n <= m and m >= 1, got {self.n} of {self.m}")

    @property
    def together(self) -> int:
        return 1

    def span(self, shape: torch.Size, window: int = 1) -> int:
        if shape[1] % self.m:
            raise ValueError(f"{self.n}:{self.m} needs a multiple of {self.m} columns, got {shape[1]}")
        return self.m

    def mask(self, scores: Float[Tensor, "rows width"], start: int = 0) -> Bool[Tensor, "rows width"]:
        return _best_of_each(scores.reshape(-1, self.m), self.n).reshape(scores.shape)


@dataclass(frozen=True)
class Blocks:
    """The share of the blocks of rows x columns weights, by the sum of their scores.

    Args:
        keep: 0 to 1.
        rows: height of a block, which must divide the number of rows.
        columns: width of a block, which must divide the number of columns.
    """

    keep: float
    rows: int
    columns: int

    def __post_init__(self) -> None:
        _check_share(self.keep)
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"blocks need at least one row and column, got {self.rows} x {self.columns}")

    @property
    def together(self) -> int:
        return self.columns

    def span(self, shape: torch.Size, window: int = 1) -> int:
        if shape[0] % self.rows or shape[1] % self.columns:
            raise ValueError(f"a {shape[0]} x {shape[1]} matrix has no whole blocks of {self.rows} x {self.columns}")
        return self.columns * max(1, window // self.columns)

    def mask(self, scores: Float[Tensor, "rows width"], start: int = 0) -> Bool[Tensor, "rows width"]:
        rows, width = scores.shape
        high, wide = rows // self.rows, width // self.columns
        sums = scores.reshape(high, self.rows, wide, self.columns).sum((1, 3))
        before = start // self.columns
        kept = _count(self.keep, high * (before + wide)) - _count(self.keep, high * before)
        mask = topk_mask(sums.flatten(), kept).reshape(high, wide)
        return mask.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)


@dataclass(frozen=True, eq=False)
class Given:
    """A mask that is known already; scores do not matter.

    Args:
        keep: (rows, columns) bool.
    """

    keep: Bool[Tensor, "rows columns"]

    @property
    def together(self) -> int:
        return 1

    def span(self, shape: torch.Size, window: int = 1) -> int:
        if self.keep.shape != shape or self.keep.dtype != torch.bool:
            raise ValueError(
                f"the mask must be bool of shape {tuple(shape)}, got {self.keep.dtype} {tuple(self.keep.shape)}"
            )
        return window

    def mask(self, scores: Float[Tensor, "rows width"], start: int = 0) -> Bool[Tensor, "rows width"]:
        return self.keep[:, start : start + scores.shape[1]].to(scores.device)


def _best_of_each(scores: Tensor, kept: int) -> Tensor:
    """True for the `kept` highest of each row; among equals the lower index wins."""
    reject_nan(scores)
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :kept]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def _count(share: float, whole: int) -> int:
    # A share such as 0.3 of 10 must not become 2.
    return min(whole, math.floor(share * whole * (1 + 1e-12)))


def _check_share(keep: float) -> None:
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be between 0 and 1, got {keep}")
