"""Scalar codebooks: few values that stand for many with the least squared error."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from numba import njit

_BINS = 4096
"""Candidate boundaries of the exact search in one dimension; Lloyd steps on all values then settle the rest."""


def scalar_codebook(
    values: Float32[np.ndarray, " N"], size: int = 256, weights: Float[np.ndarray, " N"] | None = None
) -> Float32[np.ndarray, " size"]:
    """The `size` values that represent N finite values with the least (weighted) squared error, ascending.

    In one dimension k-means has an optimum that dynamic programming finds (Wang and Song 2011, "Ckmeans.1d.dp"; the
    monotone split points make it O(k n log n)). Up to `size` distinct values come back exactly; the rest of the
    codebook then repeats the last one.

    Args:
        values: N >= 1 finite values.
        size: length of the codebook.
        weights: (N,) what an error at each value costs, positive; None: all the same.
    """
    distinct, inverse = np.unique(values, return_inverse=True)
    mass = np.bincount(inverse, weights=weights).astype(np.float64)
    if len(distinct) > size:
        points = distinct.astype(np.float64)
        centre = np.average(points, weights=mass)
        moments = np.zeros((3, len(points) + 1))
        # Sums of powers up to each point make the error of any run of points a difference of four numbers.
        for power in range(3):
            np.cumsum(mass * (points - centre) ** power, out=moments[power, 1:])
        ends = _candidate_ends(points, mass)
        cuts = ends[_optimal_cuts(np.ascontiguousarray(moments[:, ends]), size)]
        distinct = (_lloyd(points - centre, moments, cuts) + centre).astype(np.float32)
    return np.concatenate([distinct, np.full(size - len(distinct), distinct[-1], np.float32)]).astype(np.float32)


def nearest(
    values: Float32[np.ndarray, "*shape"], codebook: Float32[np.ndarray, " 256"]
) -> UInt8[np.ndarray, "*shape"]:
    """The index of the nearest entry of an ascending codebook of at most 256, the first of equal ones."""
    wide = codebook.astype(np.float64)
    middles = np.where(np.diff(wide) > 0, (wide[1:] + wide[:-1]) / 2, np.inf)
    return np.searchsorted(middles, values, side="left").astype(np.uint8)


def _candidate_ends(points: Float64[np.ndarray, " n"], mass: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " ends"]:
    """Where bins end among n distinct points, from 0 to n: half of them evenly by rank, half evenly by value."""
    if len(points) <= _BINS:
        return np.arange(len(points) + 1)
    by_rank = np.searchsorted(np.cumsum(mass), np.linspace(0, mass.sum(), _BINS // 2))
    by_value = np.searchsorted(points, np.linspace(points[0], points[-1], _BINS // 2))
    return np.unique(np.concatenate([[0, len(points)], np.clip(by_rank, 0, len(points)), by_value]))


@njit(cache=True)
def _run_error(moments, start, end):
    mass = moments[0, end] - moments[0, start]
    first = moments[1, end] - moments[1, start]
    return max(moments[2, end] - moments[2, start] - first * first / mass, 0.0)


@njit(cache=True)
def _optimal_cuts(moments, size):
    """The `size` + 1 ends of the runs that part the bins with the least error."""
    bins = moments.shape[1] - 1
    error = np.empty(bins + 1)
    error[0] = 0.0
    for end in range(1, bins + 1):
        error[end] = _run_error(moments, 0, end)
    splits = np.zeros((size + 1, bins + 1), np.int32)
    stack = np.empty((64, 4), np.int64)
    for runs in range(2, size + 1):
        before = error.copy()
        # The best split only moves right as the end does, so the middle end halves the search on either side.
        stack[0] = (runs, bins, runs - 1, bins - 1)
        depth = 1
        while depth > 0:
            depth -= 1
            low, high, first, last = stack[depth]
            end = (low + high) // 2
            best, best_split = np.inf, first
            for split in range(first, min(last, end - 1) + 1):
                candidate = before[split] + _run_error(moments, split, end)
                if candidate < best:
                    best, best_split = candidate, split
            error[end] = best
            splits[runs, end] = best_split
            if low < end:
                stack[depth] = (low, end - 1, first, best_split)
                depth += 1
            if end < high:
                stack[depth] = (end + 1, high, best_split, last)
                depth += 1
    cuts = np.empty(size + 1, np.int64)
    cuts[size] = bins
    for runs in range(size, 0, -1):
        cuts[runs - 1] = splits[runs, cuts[runs]]
    return cuts


def _lloyd(
    points: Float64[np.ndarray, " n"], moments: Float64[np.ndarray, "3 ends"], cuts: Int64[np.ndarray, " runs"]
) -> Float64[np.ndarray, " size"]:
    for _ in range(100):
        mass, first = np.diff(moments[:2, cuts], axis=1)
        means = first / mass
        inner = np.searchsorted(points, (means[1:] + means[:-1]) / 2)
        moved = np.concatenate([[0], inner, [len(points)]])
        if np.array_equal(moved, cuts) or np.diff(moved).min() < 1:
            break
        cuts = moved
    return means
