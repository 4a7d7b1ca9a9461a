"""Neighbour graphs of point clouds, and their Laplacians.

Two ways to build one: `NearestNeighbours` (works on any density) and `WithinRadius` (the graph of the SUNDAE and FPRC
papers). Both are linear in the number of points but for the k-d tree's logarithm: 500,000 points with 16 neighbours
take about 2 s of processor time (the search runs on all cores) and 75 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

LaplacianKind = Literal["random_walk", "combinatorial"]

# More copies of one point than this make the k-d tree's leaves long and every query of them slow.
_MOST_COPIES = 256
# Bounds that keep weights representable in float32, and so every point with neighbours connected.
_LARGEST_EXPONENT = 50.0
_SMALLEST_REACH = 0.01
# Points a query: bounds the memory of the k-d tree's float64 answers.
_CHUNK = 65_536


@dataclass(frozen=True)
class Graph:
    """An undirected graph over N points.

    Args:
        weights: (N, N) float32 symmetric sparse matrix without diagonal, entries above 0.
    """

    weights: scipy.sparse.csr_array

    @cached_property
    def degrees(self) -> np.ndarray:
        """(N,) float32 sums of the weights; 0 for a point without neighbours."""
        return np.asarray(self.weights.sum(axis=1), dtype=np.float32)

    def laplacian(self, signals: np.ndarray, kind: LaplacianKind = "random_walk") -> np.ndarray:
        """Each point's signal minus what its neighbours would predict.

        Args:
            signals: (N, C) float32.
            kind: "random_walk" is (I - D^-1 W) S, the difference from the neighbours' weighted mean, eigenvalues 0 to
                2; "combinatorial" is (D - W) S, which also grows with the number and closeness of neighbours.

        Returns:
            (N, C) float32; 0 for a point without neighbours, under either kind.
        """
        neighbours = self.weights @ signals
        degrees = self.degrees[:, None]
        if kind == "combinatorial":
            return degrees * signals - neighbours
        return np.where(degrees > 0, signals - neighbours / np.where(degrees > 0, degrees, 1), np.float32(0))

    def largest_eigenvalue(self, kind: LaplacianKind = "random_walk") -> float:
        """An upper bound: 2 for the random walk, twice the largest degree otherwise (Gershgorin)."""
        return 2.0 if kind == "random_walk" else 2 * max(float(self.degrees.max(initial=0)), 1e-12)


@dataclass(frozen=True)
class NearestNeighbours:
    """Every point is tied to its nearest points, with weights that adapt to the local density.

    An edge exists where either end is among the other's nearest; its weight is exp(-d^2 / (2 s_i s_j)), where s_i is
    the distance from point i to its farthest neighbour (local scaling: Zelnik-Manor and Perona, Self-Tuning Spectral
    Clustering, NIPS 2004). So a sparse background is as connected as a dense object, and nothing depends on the unit of
    length. Points at one and the same place have weight 1 among each other; no point is without neighbours.

    Args:
        count: neighbours of each point, itself not counted.
        bandwidth: one width for all edges instead, weight exp(-d^2 / (2 bandwidth^2)), in units of length.
    """

    count: int = 16
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be positive, got {self.bandwidth}")

    def build(self, points: Float[Tensor, "N D"]) -> Graph:
        edges = _nearest(_coordinates(points), self.count)
        if self.bandwidth is None:
            reach = _rows(edges, self.count).max(axis=1, initial=0)
            positive = reach[reach > 0]
            floor = _SMALLEST_REACH * float(np.median(positive)) if len(positive) else 1.0
            reach = np.maximum(reach, floor)
            from_other_end = edges.data / reach[edges.indices]
            exponents = edges.data / np.repeat(reach, np.diff(edges.indptr)) * from_other_end / 2
        else:
            exponents = (edges.data / self.bandwidth) ** 2 / 2
        return _graph(edges, np.exp(-np.minimum(exponents, _LARGEST_EXPONENT)))


@dataclass(frozen=True)
class WithinRadius:
    """Every point is tied to all points within one radius, with one bandwidth for all edges.

    The graph of SUNDAE (arXiv 2405.00676, section 3.2) and of fast resampling of point clouds via graphs (Chen et al.,
    IEEE TSP 2018): weight exp(-d^2 / (2 sigma^2)) within the radius, sigma^2 the mean squared edge length. The released
    code takes its radius from the smallest distance between any two points, which leaves clouds with near-duplicates
    almost without edges; here it comes from the median distance to the nearest other place.

    Args:
        radius: in units of length; None takes `medians` times the median distance to the nearest other place.
        medians: see `radius`.
        max_neighbours: only the nearest this many count.
    """

    radius: float | None = None
    medians: float = 4.0
    max_neighbours: int = 100

    def __post_init__(self) -> None:
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius}")
        if not self.medians > 0 or self.max_neighbours < 1:
            raise ValueError(f"medians and max_neighbours must be positive, got {self}")

    def build(self, points: Float[Tensor, "N D"]) -> Graph:
        coordinates = _coordinates(points)
        radius = self.radius or self.medians * _typical_spacing(coordinates)
        edges = _nearest(coordinates, self.max_neighbours, radius)
        squared = (edges.data / radius) ** 2
        variance = float(squared.mean(dtype=np.float64)) if len(squared) else 0.0
        return _graph(edges, np.exp(-squared / (2 * variance or 1.0)))


GraphBuilder = NearestNeighbours | WithinRadius
"""Makes a graph of points: `build(points)`. A union, not a protocol, so that recipes can name either and have a
default."""


def _coordinates(points: Tensor) -> np.ndarray:
    """(N, D) float64, with large heaps of identical points pulled apart by a billionth of the cloud's size."""
    coordinates = points.detach().cpu().double().numpy()
    bad = int((~np.isfinite(coordinates)).any(axis=1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(coordinates)} points are not finite; drop them before building a graph")
    if len(coordinates) == 0:
        return coordinates
    # Different points share a projection on a random direction only by accident, which costs no more than the noise.
    direction = np.random.default_rng(0).standard_normal(coordinates.shape[1])
    _, place, copies = np.unique(coordinates @ direction, return_inverse=True, return_counts=True)
    heaped = copies[place] > _MOST_COPIES
    if heaped.any():
        size = np.ptp(coordinates, axis=0).max() or 1.0
        noise = np.random.default_rng(0).standard_normal((int(heaped.sum()), coordinates.shape[1]))
        coordinates = coordinates.copy()
        coordinates[heaped] += 1e-9 * size * noise
    return coordinates


def _nearest(coordinates: np.ndarray, count: int, radius: float = np.inf) -> scipy.sparse.csr_array:
    """(N, N) distances, float32, to each point's nearest other points; explicit zeros between points at one place."""
    n = len(coordinates)
    count = max(min(count, n - 1), 0)
    # Near points close in memory halve the time of the queries; trained scenes come in random order.
    order = cKDTree(coordinates, balanced_tree=False).indices
    coordinates = coordinates[order]
    tree = cKDTree(coordinates, balanced_tree=False)
    distances, neighbours, counts = [], [], []
    for first in range(0, n, _CHUNK):
        chunk = np.arange(first, min(first + _CHUNK, n))
        far, near = tree.query(coordinates[chunk], count + 1, distance_upper_bound=radius, workers=-1)
        far, near = far.reshape(len(chunk), count + 1), near.reshape(len(chunk), count + 1)
        # A point is its own nearest, unless others at the same place came first: then the last hit gives way.
        itself = near == chunk[:, None]
        itself[~itself.any(axis=1), -1] = True
        found = np.isfinite(far) & ~itself
        counts.append(found.sum(axis=1))
        distances.append(far[found].astype(np.float32))
        neighbours.append(near[found].astype(np.int32))
    starts = np.concatenate([[0], *counts]).cumsum()
    index = np.int32 if starts[-1] < 2**31 else np.int64
    values = np.concatenate([np.zeros(0, np.float32), *distances])
    columns = order[np.concatenate([np.zeros(0, np.int32), *neighbours])].astype(index)
    ordered = scipy.sparse.csr_array((values, columns, starts.astype(index)), shape=(n, n))
    return ordered[np.argsort(order)]


def _typical_spacing(coordinates: np.ndarray) -> float:
    """Median distance of a point to the nearest one at another place, among its eight nearest; 1 if there is none."""
    edges = _nearest(coordinates, 8)
    distances = _rows(edges, 8)
    elsewhere = np.where(distances > 0, distances, np.inf).min(axis=1, initial=np.inf)
    elsewhere = elsewhere[np.isfinite(elsewhere)]
    return float(np.median(elsewhere)) if len(elsewhere) else 1.0


def _rows(edges: scipy.sparse.csr_array, count: int) -> np.ndarray:
    """(N, count) distances, where every point was asked for `count` neighbours (fewer if there are no more points)."""
    n = edges.shape[0]
    return edges.data.reshape(n, max(min(count, n - 1), 0))


def _graph(edges: scipy.sparse.csr_array, weights: np.ndarray) -> Graph:
    """Graph with an edge wherever either end lists the other; edges of weight 0 are dropped."""
    directed = scipy.sparse.csr_array((weights.astype(np.float32), edges.indices, edges.indptr), shape=edges.shape)
    directed.eliminate_zeros()
    directed.sort_indices()
    return Graph(directed.maximum(directed.T.tocsr()).tocsr())


def signals_array(signals: Float[Tensor, "N C"]) -> np.ndarray:
    """(N, C) float32, on the CPU, where graphs live."""
    return signals.detach().to("cpu", torch.float32).numpy()
