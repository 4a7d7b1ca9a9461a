"""Voxels by their coordinates (COO): a list of occupied cells, and a row of features for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

LIMIT = 1 << 20
"""Coordinates are in [-LIMIT, LIMIT): three of them fit one 64-bit key."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseVoxels:
    """N occupied cells of a grid.

    Args:
        coords: (N, 3) cells, all different, in [-LIMIT, LIMIT).
        features: (N, D) floats, finite; row i belongs to cell i.

    Raises:
        ValueError: shapes or dtypes do not fit, a cell is out of range or there twice, or a feature is not finite.
    """

    coords: Int64[Tensor, "N 3"]
    features: Float[Tensor, "N D"]

    def __post_init__(self) -> None:
        count = len(self.coords)
        if self.coords.shape != (count, 3) or self.coords.dtype != torch.int64:
            raise ValueError(f"coords must be (N, 3) int64, got {self.coords.dtype} {tuple(self.coords.shape)}")
        if self.features.ndim != 2 or len(self.features) != count or not self.features.is_floating_point():
            raise ValueError(f"features must be ({count}, D) floats, got {tuple(self.features.shape)}")
        wrong = int(((self.coords < -LIMIT) | (self.coords >= LIMIT)).any(dim=1).sum())
        if wrong:
            raise ValueError(f"{wrong} of {count} cells are out of [-{LIMIT}, {LIMIT})")
        twice = count - len(cell_keys(self.coords).unique())
        if twice:
            raise ValueError(f"{twice} of {count} cells are there more than once")
        infinite = int((~torch.isfinite(self.features)).any(dim=1).sum())
        if infinite:
            raise ValueError(f"the features of {infinite} of {count} cells are not finite (NaN or infinite)")

    def __len__(self) -> int:
        return len(self.coords)

    def select(self, index: Tensor) -> Self:
        """The cells at `index` ((M,) int64 or (N,) bool), in that order, with their features."""
        return type(self)(self.coords[index], self.features[index])

    def find(self, coords: Int64[Tensor, "*batch 3"]) -> Int64[Tensor, "*batch"]:
        """The row of each cell, -1 for one that is not occupied."""
        if not len(self):
            return torch.full(coords.shape[:-1], -1)
        keys, order = cell_keys(self.coords).sort()
        wanted = cell_keys(coords)
        place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        inside = ((coords >= -LIMIT) & (coords < LIMIT)).all(dim=-1)
        return torch.where((keys[place] == wanted) & inside, order[place], -1)

    def coarser(self) -> tuple[Self, Int64[Tensor, " N"]]:
        """Cells twice as long, ordered by key, with mean features; and the row of the one that each cell lies in."""
        halved = torch.div(self.coords, 2, rounding_mode="floor")
        keys, parents, counts = cell_keys(halved).unique(return_inverse=True, return_counts=True)
        coords = halved.new_empty(len(keys), 3)
        coords[parents] = halved
        sums = self.features.new_zeros(len(keys), self.features.shape[1]).index_add_(0, parents, self.features)
        return type(self)(coords, sums / counts[:, None].to(sums)), parents


def cell_keys(coords: Int64[Tensor, "*batch 3"]) -> Int64[Tensor, "*batch"]:
    """One number for each cell, in the order of x, then y, then z."""
    x, y, z = (coords + LIMIT).unbind(dim=-1)
    return (x * 2 * LIMIT + y) * 2 * LIMIT + z


def neighbour_offsets() -> Int64[Tensor, "26 3"]:
    """The steps to the cells that touch one by a face, an edge or a corner."""
    steps = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    return steps[(steps != 0).any(dim=1)]
