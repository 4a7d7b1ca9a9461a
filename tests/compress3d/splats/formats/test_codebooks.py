"""Scalar codebooks against brute force, palettes against exhaustive k-means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3d.splats.formats.codebooks import nearest, scalar_codebook
from compress3d.splats.formats.palette import distinct_rows, row_palette


def error(values: np.ndarray, codebook: np.ndarray, weights: np.ndarray | None = None) -> float:
    squared = (values.astype(np.float64) - codebook[nearest(values, codebook)]) ** 2
    return float(np.average(squared, weights=weights))


def best_error(values: np.ndarray, size: int, weights: np.ndarray) -> float:
    """The least weighted error over all ways to cut the sorted values into runs."""
    order = np.argsort(values)
    values, weights = values[order].astype(np.float64), weights[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), size - 1):
        total = 0.0
        for start, end in itertools.pairwise((0, *cuts, len(values))):
            mean = np.average(values[start:end], weights=weights[start:end])
            total += (weights[start:end] * (values[start:end] - mean) ** 2).sum()
        best = min(best, total)
    return best / weights.sum()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=9), st.integers(1, 4), st.integers(0, 2**31))
def test_a_codebook_is_optimal(values: list[float], size: int, seed: int) -> None:
    array = np.array(values, np.float32)
    weights = np.random.default_rng(seed).uniform(0.1, 10, len(array))
    codebook = scalar_codebook(array, size, weights)
    assert error(array, codebook, weights) <= best_error(array, size, weights) * (1 + 1e-5) + 1e-9


def test_many_values_come_within_a_hair_of_the_theory() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    # Panter and Dite: sqrt(3) pi / 2 / size^2 of the variance for a normal distribution.
    assert error(values, scalar_codebook(values)) < 1.01 * np.sqrt(3) * np.pi / 2 / 256**2


def test_heavy_tails_do_not_starve_the_centre() -> None:
    values = np.random.default_rng(0).standard_cauchy(100_000).astype(np.float32)
    codebook = scalar_codebook(values)
    steps = np.diff(codebook[np.abs(codebook) < 1])
    assert codebook.min() < -1000 and len(steps) > 10


@pytest.mark.parametrize("count", [1, 2, 255, 256])
def test_few_distinct_values_come_back_exactly(count: int) -> None:
    distinct = np.random.default_rng(1).normal(size=count).astype(np.float32)
    values = np.repeat(distinct, 7)
    codebook = scalar_codebook(values)
    assert codebook.shape == (256,) and codebook.dtype == np.float32
    assert (np.diff(codebook) >= 0).all()
    assert np.array_equal(codebook[nearest(values, codebook)], values)


def test_a_weight_draws_the_codebook() -> None:
    values = np.array([0, 1, 10, 11], np.float32)
    np.testing.assert_allclose(scalar_codebook(values, 1, np.array([1.0, 1, 1, 97])), [10.78])


def test_nearest_is_nearest() -> None:
    random = np.random.default_rng(2)
    codebook = np.sort(random.normal(size=256)).astype(np.float32)
    values = random.normal(size=(50, 3)).astype(np.float32)
    want = np.abs(values[..., None].astype(np.float64) - codebook).argmin(axis=-1)
    assert np.array_equal(nearest(values, codebook), want)


def rows_with_structure(count: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    middles = random.normal(size=(40, width))
    return (middles[random.integers(0, 40, count)] + 0.2 * random.normal(size=(count, width))).astype(np.float32)


def test_distinct_rows_are_found_in_any_dress() -> None:
    rows = rows_with_structure(50, 9)[np.random.default_rng(0).integers(0, 50, 300)]
    rows[0], rows[1] = 0.0, -0.0
    distinct, inverse = distinct_rows(rows)
    assert np.array_equal(distinct[inverse], rows)
    assert len(distinct) == len(np.unique(rows + 0.0, axis=0))


@pytest.mark.parametrize("count", [1, 5, 300])
def test_a_palette_of_few_distinct_rows_is_exact(count: int) -> None:
    rows = np.repeat(rows_with_structure(count, 24), 3, axis=0)
    palette, labels = row_palette(rows, count)
    assert len(palette) == count and np.array_equal(palette[labels], rows)


@pytest.mark.parametrize(("count", "size"), [(3000, 700), (3000, 40), (600, 599), (2000, 1)])
def test_a_palette_is_nearly_as_good_as_exhaustive_k_means(count: int, size: int) -> None:
    rows = rows_with_structure(count, 9)
    palette, labels = row_palette(rows, size)
    assert palette.shape == (min(size, len(palette)), 9) and len(palette) > 0.97 * size
    assert np.array_equal(np.unique(labels), np.arange(len(palette)))
    reference = rows[np.linspace(0, count - 1, size).astype(int)].astype(np.float64)
    for _ in range(10):
        chosen = ((rows[:, None].astype(np.float64) - reference) ** 2).sum(-1).argmin(1)
        for entry in np.unique(chosen):
            reference[entry] = rows[chosen == entry].mean(0)
    exhaustive = ((rows - reference[((rows[:, None] - reference) ** 2).sum(-1).argmin(1)]) ** 2).mean()
    assert ((rows - palette[labels]) ** 2).mean() < 1.02 * exhaustive + 1e-12


def test_a_palette_is_the_same_every_time_and_spends_itself_where_the_weight_is() -> None:
    rows = rows_with_structure(4000, 24)
    heavy = np.arange(4000) < 2000
    weights = np.where(heavy, 100.0, 0.01)
    first, second = (row_palette(rows, 300, weights) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    plain_palette, plain_labels = row_palette(rows, 300)
    weighted = ((rows - first[0][first[1]]) ** 2)[heavy].mean()
    assert weighted < 0.95 * ((rows - plain_palette[plain_labels]) ** 2)[heavy].mean()
