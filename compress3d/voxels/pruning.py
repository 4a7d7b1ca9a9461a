"""Voxels pruned from coarse to fine by a query, and what was pruned too much put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from compress3d.voxels.grid import SparseVoxels, neighbour_offsets
from compress3d.voxels.pyramid import VoxelPyramid, group_name
from compress3d.voxels.query import Query, relevance
from secateur.units import Keep


@dataclass(frozen=True, slots=True)
class PruningRecord:
    """What coarse-to-fine pruning asked and left, level by level, finest first.

    Args:
        voxels: how many there were.
        asked: for how many the query was evaluated: the cost.
        kept: how many stay, with those put back.
        completed: how many of those were put back.
    """

    voxels: tuple[int, ...]
    asked: tuple[int, ...]
    kept: tuple[int, ...]
    completed: tuple[int, ...]


@dataclass(frozen=True)
class QueryPruning:
    """From the coarsest level down: voxels stay that are relevant and lie in one that stayed; then gaps are filled.

    Guo et al., Text-guided Sparse Voxel Pruning (TSP3D, arXiv 2502.10392). Their text-guided pruning keeps voxels by a
    predicted probability and refines those only; their completion-based addition finds what the upsampled voxels miss
    of the predicted target region in the features of the backbone, and adds it. Here the probability is a `Query`, and
    completion asks it about the pruned voxels that touch a kept one of their level (26 neighbours), `reach` times over:
    the relevant of them return with their own features, and with all that they lie in.

    Args:
        thresholds: least relevance to stay, coarsest level first, one a level; 0 keeps all.
        completion: least relevance of a neighbour to return; None puts nothing back.
        reach: how many cells completion may go beyond what was kept, at least 1.
    """

    thresholds: Sequence[float]
    completion: float | None = None
    reach: int = 1

    def __post_init__(self) -> None:
        limits = [*self.thresholds, *([] if self.completion is None else [self.completion])]
        if not self.thresholds or not all(0 <= limit <= 1 for limit in limits) or self.reach < 1:
            raise ValueError(
                f"thresholds and completion must be in [0, 1] and reach at least 1, got {tuple(self.thresholds)}, "
                f"{self.completion} and {self.reach}"
            )

    def prune(self, target: VoxelPyramid, query: Query) -> tuple[VoxelPyramid, PruningRecord]:
        """What is left, and what it took.

        Raises:
            ValueError: there is not one threshold a level, or the query gives anything but numbers in [0, 1].
        """
        keep, record = self.choose(target, query)
        return target.cut(keep), record

    def choose(self, target: VoxelPyramid, query: Query) -> tuple[Keep, PruningRecord]:
        """Which voxels stay, all that they lie in included; arguments and errors as for `prune`."""
        count = len(target.levels)
        if len(self.thresholds) != count:
            raise ValueError(f"{count} levels need {count} thresholds, got {len(self.thresholds)}")
        keep: Keep = {}
        asked, completed = [0] * count, [0] * count
        for level in range(count - 1, -1, -1):
            voxels, threshold = target.levels[level], self.thresholds[count - 1 - level]
            candidates = torch.arange(len(voxels))
            if level < count - 1:
                candidates = candidates[keep[group_name(level + 1)][target.parents[level]]]
            mask = torch.zeros(len(voxels), dtype=torch.bool)
            mask[candidates] = relevance(query, voxels.features[candidates]) >= threshold
            asked[level] = len(candidates)
            if self.completion is not None:
                known = torch.zeros(len(voxels), dtype=torch.bool)
                known[candidates] = threshold <= self.completion
                added, tried = complete(voxels, mask, query, self.completion, self.reach, known)
                completed[level], asked[level] = len(added), asked[level] + tried
                mask[added] = True
            keep[group_name(level)] = mask
        keep = target.with_ancestors({group_name(level): keep[group_name(level)] for level in range(count)})
        kept = tuple(int(keep[group_name(level)].sum()) for level in range(count))
        sizes = tuple(len(voxels) for voxels in target.levels)
        return keep, PruningRecord(sizes, tuple(asked), kept, tuple(completed))


def complete(
    voxels: SparseVoxels,
    kept: Bool[Tensor, " N"],
    query: Query,
    threshold: float,
    reach: int = 1,
    known: Bool[Tensor, " N"] | None = None,
) -> tuple[Int64[Tensor, " A"], int]:
    """Relevant voxels that were pruned although they touch kept ones, or touch such voxels, up to `reach` cells away.

    Args:
        voxels: of one level.
        kept: which stay; it is left as it is.
        query: what is asked for.
        threshold: least relevance to return.
        reach: in cells.
        known: which need not be asked about, since they were found irrelevant; None: none.

    Returns:
        The rows of those that return, each once and none that is kept; and how many were asked about.
    """
    told = kept.clone() if known is None else kept | known
    front, added, asked = kept.nonzero()[:, 0], [], 0
    for _ in range(reach):
        around = voxels.find(voxels.coords[front][:, None] + neighbour_offsets()).unique()
        around = around[around >= 0]
        around = around[~told[around]]
        told[around] = True
        asked += len(around)
        front = around[relevance(query, voxels.features[around]) >= threshold]
        if not len(front):
            break
        added.append(front)
    return torch.cat(added) if added else front.new_zeros(0), asked
