"""What goes with a channel: the rows of all layers that torch-pruning's dependency graph ties to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency.node import Node

from secateur.surgery.layer_members import Unsupported

Pruning = Callable[..., Any]
"""torch-pruning's function for what goes of a layer: its outputs or its inputs."""

Reached = dict[tuple[Node, Pruning], "Rows"]
"""(layer, what is pruned there) -> its rows, with the root's channels that lead to them."""

Coupled = Callable[[Node, Pruning, Collection[int]], Iterable[list[int]]]
"""Which of a layer's rows can only go together (see `secateur.surgery.layer_members.coupled_rows`)."""


def closure(root: Node, pruning: Pruning, size: int) -> Reached:
    """Every row of every layer that some output channel of the root drags along."""
    everything = Rows.of(np.arange(size), np.arange(size), size)
    reached = {(root, pruning): everything}
    stack = [(root, pruning, everything)]
    while stack:
        node, pruned, rows = stack.pop()
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(pruned):
                continue
            moved = rows.mapped([mapping for mapping in dependency.index_mapping if mapping is not None])
            key = (dependency.target, dependency.handler)
            fresh = moved.beyond(reached[key]) if key in reached else moved
            reached[key] = fresh if key not in reached else reached[key].joined(fresh)
            # Rows whose root is lost are an error in the end, and need not be followed.
            fresh = fresh.rooted()
            if len(fresh):
                stack.append((*key, fresh))
    return {key: rows for key, rows in reached.items() if len(rows)}


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of a layer, each with a channel of the root that leads to it: ascending pairs, none of them twice.

    A pair is one number, row * (size + 1) + root + 1, with a root of -1 where tracing lost it: as arrays, because wide
    layers have tens of thousands.
    """

    pairs: np.ndarray
    size: int

    @classmethod
    def of(cls, rows: np.ndarray, roots: np.ndarray, size: int) -> Rows:
        return cls(np.unique(rows * (size + 1) + roots + 1), size)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def rows(self) -> np.ndarray:
        return self.pairs // (self.size + 1)

    @property
    def roots(self) -> np.ndarray:
        return self.pairs % (self.size + 1) - 1

    def mapped(self, mappings: list[Callable[..., Any]]) -> Rows:
        """What torch-pruning makes of the rows on their way to the next layer."""
        if not mappings:
            return self
        indices = [_HybridIndex(row, root) for row, root in zip(self.rows.tolist(), self.roots.tolist(), strict=True)]
        for mapping in mappings:
            indices = mapping(indices)
        rows = np.array([index.idx for index in indices], dtype=np.int64)
        roots = np.array([-1 if index.root_idx is None else index.root_idx for index in indices], dtype=np.int64)
        return Rows.of(rows, roots, self.size)

    def beyond(self, known: Rows) -> Rows:
        return Rows(np.setdiff1d(self.pairs, known.pairs, assume_unique=True), self.size)

    def joined(self, others: Rows) -> Rows:
        return Rows(np.union1d(self.pairs, others.pairs), self.size) if len(others) else self

    def rooted(self) -> Rows:
        return Rows(self.pairs[self.roots >= 0], self.size)


def units_of(
    size: int, reached: Reached, coupled: Callable[[Node, Pruning, Collection[int]], Iterable[list[int]]]
) -> np.ndarray:
    """(size,) the unit of each channel, in order of the units' first channels.

    Channels that lead to one row, or to rows that can only go together, are one unit.
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for (target, pruning), found in reached.items():
        known = found.rooted()
        rows, roots = known.rows, known.roots
        pairs.append(np.stack([roots[:-1], roots[1:]], axis=1)[rows[:-1] == rows[1:]])
        for together in coupled(target, pruning, set(found.rows.tolist())):
            run = roots[np.searchsorted(rows, np.intersect1d(rows, together))]
            pairs.append(np.stack([run[:-1], run[1:]], axis=1))
    first, second = np.concatenate(pairs).T
    joined = coo_matrix((np.ones(len(first), dtype=bool), (first, second)), shape=(size, size))
    _, labels = connected_components(joined, directed=False)
    _, starts, unit_of = np.unique(labels, return_index=True, return_inverse=True)
    return starts.argsort().argsort()[unit_of]


def rows_by_unit(found: Rows, unit_of: np.ndarray, layer: str) -> Tensor:
    """(units, rows per unit) rows of a layer."""
    known = found.rooted()
    rows, first = np.unique(known.rows, return_index=True)
    if len(rows) < len(np.unique(found.rows)):
        raise Unsupported(f"tracing lost which channels lead to {layer!r}")
    units = unit_of[known.roots[first]]
    counts = np.bincount(units, minlength=int(unit_of.max()) + 1)
    if counts.min() != counts.max():
        raise Unsupported(f"its units own unequal numbers of rows of {layer!r}")
    return torch.from_numpy(rows[units.argsort(kind="stable")].reshape(len(counts), -1))
