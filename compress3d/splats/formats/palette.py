"""Palettes: few rows that stand for many with little squared error, by k-means with tens of thousands of means."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int64
from numba import njit, prange
from numpy.typing import NDArray

_ROWS_PER_CELL, _MEANS_PER_CELL = 512, 64
"""At least so many, lest finding a row's cell cost more than what it saves."""

_SAMPLES_PER_CELL = 64
_CELLS_AROUND = 32
_NEIGHBOURS = 96
_FAST = {"reassoc", "contract", "nsz"}
"""What lets sums be vectorised; `fastmath=True` would also forbid the infinity that searches begin with."""

_COARSE_STEPS, _CELL_STEPS, _GRAPH_STEPS = 6, 3, 6


def row_palette(
    rows: Float32[np.ndarray, "N D"], size: int, weights: Float[np.ndarray, " N"] | None = None
) -> tuple[Float32[np.ndarray, "P D"], Int64[np.ndarray, " N"]]:
    """At most `size` rows that represent N rows with little squared error, and which of them stands for each.

    Up to `size` distinct rows come back exactly. Otherwise Lloyd's k-means, made fast for palettes of tens of thousands
    by looking for a row's nearest mean only where it can be: a coarse k-means parts the rows into cells, each cell gets
    means by its share of the error, and from then on a row looks among the neighbours of the mean that it has (Wang et
    al. 2012, "Fast approximate k-means via cluster closures"). The same rows give the same palette.

    Args:
        rows: N >= 1 finite rows.
        size: the most rows of the palette.
        weights: (N,) what an error at each row costs, positive; None: all the same.

    Returns:
        (P, D) palette, P <= size, and (N,) index of each row's entry; no entry is unused.
    """
    distinct, inverse = distinct_rows(rows)
    if len(distinct) <= size:
        return distinct, inverse
    mass = np.bincount(inverse, weights=weights).astype(np.float32)
    coarse, cells = _coarse_cells(distinct, mass, max(1, min(len(distinct) // _ROWS_PER_CELL, size // _MEANS_PER_CELL)))
    order = np.argsort(cells, kind="stable")
    # Rows of a cell side by side: they look at the same means, which then stay in the processor's cache.
    palette, labels = _kmeans(distinct[order], mass[order], cells[order], coarse, size)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    used, labels = np.unique(labels[back[inverse]], return_inverse=True)
    return palette[used], labels


def distinct_rows(rows: Float32[np.ndarray, "N D"]) -> tuple[Float32[np.ndarray, "U D"], Int64[np.ndarray, " N"]]:
    """The distinct rows, and the index of each row's own among them."""
    words = np.ascontiguousarray(rows + np.float32(0)).view(np.uint32)
    factors: NDArray[np.uint64] = np.random.default_rng(0).integers(0, 2**64 - 1, words.shape[1], np.uint64)
    factors |= np.uint64(1)
    hashes = np.zeros(len(rows), np.uint64)
    for column in range(words.shape[1]):
        hashes += words[:, column] * factors[column]
    # Sorting one hash a row is many times faster than sorting rows; the comparison makes it exact.
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    if np.array_equal(rows[first][inverse], rows):
        return rows[first], inverse
    distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
    return distinct, inverse.reshape(-1)


def _coarse_cells(
    rows: Float32[np.ndarray, "N D"], mass: Float32[np.ndarray, " N"], count: int
) -> tuple[Float32[np.ndarray, "C D"], Int64[np.ndarray, " N"]]:
    """Means of `count` cells, and the cell of each row."""
    random = np.random.default_rng(0)
    picked = np.sort(random.choice(len(rows), min(len(rows), count * _SAMPLES_PER_CELL), replace=False))
    sample = np.ascontiguousarray(rows[picked])
    coarse = sample[np.arange(count) * len(sample) // count]
    everywhere, ends = np.arange(count), np.array([0, count])
    for _ in range(_COARSE_STEPS):
        labels = _nearest(sample, coarse, everywhere, ends, np.zeros(len(sample), np.int64))[0]
        coarse = _weighted_means(sample, mass[picked], labels, coarse)
    return coarse, _nearest(rows, coarse, everywhere, ends, np.zeros(len(rows), np.int64))[0]


def _kmeans(
    rows: Float32[np.ndarray, "N D"],
    mass: Float32[np.ndarray, " N"],
    cells: Int64[np.ndarray, " N"],
    coarse: Float32[np.ndarray, "C D"],
    size: int,
) -> tuple[Float32[np.ndarray, "P D"], Int64[np.ndarray, " N"]]:
    """K-means of rows that are sorted by cell, which the coarse means define."""
    populations = np.bincount(cells, minlength=len(coarse))
    spread = ((rows - coarse[cells]) ** 2).sum(axis=1) * mass
    shares = _shares(np.bincount(cells, weights=spread, minlength=len(coarse)), populations, size)
    ends = np.concatenate([[0], np.cumsum(shares)])
    owners = np.repeat(np.arange(len(coarse)), shares)
    rank = np.arange(len(owners)) - ends[owners]
    starts = np.concatenate([[0], np.cumsum(populations)])
    palette = rows[starts[owners] + rank * populations[owners] // shares[owners]]
    for _ in range(_CELL_STEPS):
        labels, errors = _nearest(rows, palette, np.arange(len(palette)), ends, cells)
        palette = _weighted_means(rows, mass, labels, palette)
    revived, worst = _revived(labels, errors * mass, len(palette))
    palette[revived], owners[revived] = rows[worst], cells[worst]
    by_owner = np.argsort(owners, kind="stable")
    palette, owners = palette[by_owner], owners[by_owner]
    labels = np.argsort(by_owner)[labels]
    ends = np.searchsorted(owners, np.arange(len(coarse) + 1))
    graph = _neighbours(palette, owners, *_means_around(coarse, ends), min(_NEIGHBOURS, len(palette)))
    graph_ends = np.arange(len(palette) + 1) * graph.shape[1]
    for _ in range(_GRAPH_STEPS):
        labels, errors = _nearest(rows, palette, graph.reshape(-1), graph_ends, labels)
        palette = _weighted_means(rows, mass, labels, palette)
    labels, errors = _nearest(rows, palette, graph.reshape(-1), graph_ends, labels)
    revived, worst = _revived(labels, errors * mass, len(palette))
    labels[worst] = revived
    return _weighted_means(rows, mass, labels, palette), labels


def _revived(
    labels: Int64[np.ndarray, " N"], errors: Float32[np.ndarray, " N"], size: int
) -> tuple[Int64[np.ndarray, " dead"], Int64[np.ndarray, " dead"]]:
    """The palette entries that no row uses, and as many rows of the largest errors for them to stand on."""
    dead = np.flatnonzero(np.bincount(labels, minlength=size) == 0)
    return dead, np.argsort(-errors, kind="stable")[: len(dead)]


def _shares(
    errors: Float32[np.ndarray, " C"], populations: Int64[np.ndarray, " C"], size: int
) -> Int64[np.ndarray, " C"]:
    """How many means each cell gets: at least one if it has rows, at most its rows, `size` in all if rows suffice."""
    # The density of optimal means goes with a power below one of the density of errors (Zador 1982); 0.8 measured best.
    wanted = np.maximum(errors, 1e-30) ** 0.8
    shares = np.minimum(populations, 1)
    while (left := min(size, populations.sum()) - shares.sum()) > 0:
        open_cells = shares < populations
        ideal = left * wanted * open_cells / (wanted * open_cells).sum()
        more = ideal.astype(np.int64)
        # What rounding down leaves goes to the largest remainders, so that each round makes progress.
        more[np.argsort(more - ideal, kind="stable")[: max(left - more.sum(), 0)]] += 1
        shares = np.minimum(shares + more, populations)
    return shares


def _means_around(
    coarse: Float32[np.ndarray, "C D"], ends: Int64[np.ndarray, " ends"]
) -> tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " ends"]]:
    """For each cell, one after the other, the means of the cells around it, and where each cell's end."""
    around = min(_CELLS_AROUND, len(coarse))
    cells = np.arange(len(coarse))
    near = _neighbours(coarse, np.zeros(len(coarse), np.int64), cells, np.array([0, len(coarse)]), around)
    lists = [np.concatenate([np.arange(ends[cell], ends[cell + 1]) for cell in row]) for row in near]
    return np.concatenate(lists), np.concatenate([[0], np.cumsum([len(found) for found in lists])])


@njit(parallel=True, cache=True, fastmath=_FAST)
def _nearest(rows, palette, candidates, ends, groups):
    """For each row the nearest palette entry, and its squared distance, among candidates[ends[g] : ends[g + 1]]."""
    labels = np.empty(len(rows), np.int64)
    errors = np.empty(len(rows), np.float32)
    for row in prange(len(rows)):
        best, label = np.float32(np.inf), np.int64(0)
        for place in range(ends[groups[row]], ends[groups[row] + 1]):
            candidate = candidates[place]
            error = np.float32(0)
            for column in range(rows.shape[1]):
                difference = rows[row, column] - palette[candidate, column]
                error += difference * difference
            if error < best:
                best, label = error, candidate
        labels[row], errors[row] = label, best
    return labels, errors


@njit(parallel=True, cache=True, fastmath=_FAST)
def _neighbours(palette, groups, candidates, ends, count):
    """For each palette entry the `count` nearest ones, itself first, among its group's candidates."""
    found = np.empty((len(palette), count), np.int64)
    for entry in prange(len(palette)):
        errors = np.full(count, np.float32(np.inf))
        nearest = np.full(count, np.int64(entry))
        for place in range(ends[groups[entry]], ends[groups[entry] + 1]):
            candidate = candidates[place]
            error = np.float32(0)
            for column in range(palette.shape[1]):
                difference = palette[entry, column] - palette[candidate, column]
                error += difference * difference
            if error < errors[count - 1]:
                slot = count - 1
                while slot > 0 and errors[slot - 1] > error:
                    errors[slot], nearest[slot] = errors[slot - 1], nearest[slot - 1]
                    slot -= 1
                errors[slot], nearest[slot] = error, candidate
        found[entry] = nearest
    return found


@njit(cache=True)
def _weighted_means(rows, mass, labels, palette):
    """The mean of each entry's rows; an entry that has none stays where it is."""
    sums = np.zeros(palette.shape)
    total = np.zeros(len(palette))
    for row in range(len(rows)):
        total[labels[row]] += mass[row]
        for column in range(rows.shape[1]):
            sums[labels[row], column] += mass[row] * rows[row, column]
    means = palette.copy()
    for entry in range(len(palette)):
        if total[entry] > 0:
            for column in range(rows.shape[1]):
                means[entry, column] = sums[entry, column] / total[entry]
    return means
