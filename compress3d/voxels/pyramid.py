"""Levels of sparse voxels, each half as fine as the one below, as something prunable: a group of units a level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.voxels.grid import SparseVoxels
from secateur.units import Keep, Member, UnitGroup, check_keep, mask_of

_BYTES_OF_A_CELL = 12
"""Three 32-bit coordinates."""


def group_name(level: int) -> str:
    """The name of a level's group of units, and of its features in `tensors()`; level 0 is the finest."""
    return f"level {level}"


@dataclass(slots=True, eq=False)
class VoxelPyramid:
    """L levels of voxels, and which voxel of the next level each lies in.

    A voxel acts only where all that it lies in do: a mask of 0, or a cut, takes what is inside along. So the masks of
    one branch multiply, and a budget for a level is an upper bound for what a cut leaves of it.

    Args:
        levels: finest first; cells of level l are 2^l cells of level 0 long.
        parents: for each level but the last, (N_l,) rows of the voxels of level l + 1.

    Raises:
        ValueError: a parent is not the cell that a voxel lies in, or numbers do not fit.
    """

    levels: tuple[SparseVoxels, ...]
    parents: tuple[Int64[Tensor, " N"], ...]
    _masks: tuple[Tensor, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.levels or len(self.parents) != len(self.levels) - 1:
            raise ValueError(f"{len(self.levels)} levels need one parents less, got {len(self.parents)}")
        for level, parents in enumerate(self.parents):
            fine, coarse = self.levels[level], self.levels[level + 1]
            halved = torch.div(fine.coords, 2, rounding_mode="floor")
            if parents.shape != (len(fine),) or not torch.equal(coarse.coords[parents], halved):
                raise ValueError(f"parents of level {level} are not the cells of level {level + 1} around its voxels")

    @classmethod
    def of(cls, voxels: SparseVoxels, levels: int) -> Self:
        """The voxels and `levels - 1` coarser levels, of mean features.

        Raises:
            ValueError: `levels` is below 1.
        """
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        built, parents = [voxels], []
        for _ in range(levels - 1):
            coarse, rows = built[-1].coarser()
            built.append(coarse)
            parents.append(rows)
        return cls(tuple(built), tuple(parents))

    def tensors(self) -> Mapping[str, Tensor]:
        return {group_name(level): voxels.features for level, voxels in enumerate(self.levels)}

    def groups(self) -> Sequence[UnitGroup]:
        groups = []
        for level, voxels in enumerate(self.levels):
            ones = torch.ones(len(voxels))
            bytes_each = _BYTES_OF_A_CELL + voxels.features.shape[1] * voxels.features.element_size()
            cost = {"voxels": ones, "bytes": ones * bytes_each}
            # Whole branches may go.
            groups.append(UnitGroup(group_name(level), len(voxels), (Member(group_name(level)),), cost, min_keep=0))
        return tuple(groups)

    def features(self, level: int) -> Float[Tensor, "N D"]:
        """A level's features, times the masks in force of each voxel and of all that it lies in."""
        features = self.levels[level].features
        if self._masks is None:
            return features
        gate = self._masks[-1]
        for finer in range(len(self.levels) - 2, level - 1, -1):
            gate = self._masks[finer] * gate[self.parents[finer]]
        return features * gate[:, None].to(features)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Multiply each voxel's features by its mask and those of all that it lies in, while the context is open."""
        before = self._masks
        self._masks = tuple(mask_of(masks, group.name, group.size) for group in self.groups())
        try:
            yield
        finally:
            self._masks = before

    def nested(self, keep: Keep) -> Keep:
        """`keep` without the voxels that lie in one that goes: what `cut` leaves."""
        check_keep(keep, self.groups())
        kept = {group_name(len(self.levels) - 1): keep[group_name(len(self.levels) - 1)]}
        for level in range(len(self.levels) - 2, -1, -1):
            around = kept[group_name(level + 1)][self.parents[level]]
            kept[group_name(level)] = keep[group_name(level)] & around
        return {group.name: kept[group.name] for group in self.groups()}

    def with_ancestors(self, keep: Keep) -> Keep:
        """`keep` and all that the kept voxels lie in: every one of them outlasts a cut."""
        check_keep(keep, self.groups())
        kept = {name: mask.clone() for name, mask in keep.items()}
        for level, parents in enumerate(self.parents):
            kept[group_name(level + 1)][parents[kept[group_name(level)]]] = True
        return kept

    def cut(self, keep: Keep) -> Self:
        kept = self.nested(keep)
        levels, parents = [], []
        for level, voxels in enumerate(self.levels):
            mask = kept[group_name(level)]
            levels.append(voxels.select(mask))
            if level < len(self.parents):
                numbers = kept[group_name(level + 1)].cumsum(0) - 1
                parents.append(numbers[self.parents[level][mask]])
        return type(self)(tuple(levels), tuple(parents))
