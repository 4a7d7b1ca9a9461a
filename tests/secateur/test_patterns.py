"""Exact masks, whole and in windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.patterns import Blocks, Given, NofM, Pattern, PerRow, Unstructured
from tests.contracts import assert_same
from tests.secateur.toys import generator

SCORES = torch.rand(4, 12, generator=generator())


@given(keep=st.floats(0, 1), rows=st.integers(1, 4), columns=st.integers(1, 12), window=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_windows_keep_together_what_the_whole_keeps(keep: float, rows: int, columns: int, window: int) -> None:
    scores = SCORES[:rows, :columns]
    for pattern, expected in (
        (Unstructured(keep), int(keep * rows * columns * (1 + 1e-12))),
        (PerRow(keep), rows * int(keep * columns * (1 + 1e-12))),
    ):
        parts = [
            pattern.mask(part, start)
            for part, start in zip(scores.split(window, 1), range(0, columns, window), strict=True)
        ]
        assert int(torch.cat(parts, 1).sum()) == int(pattern.mask(scores).sum()) == expected


def test_n_of_m_keeps_exactly_n_of_each_m() -> None:
    mask = NofM(2, 4).mask(SCORES)
    assert bool((mask.reshape(4, 3, 4).sum(2) == 2).all())
    best = SCORES.reshape(-1, 4).topk(2, 1).indices
    assert bool(mask.reshape(-1, 4).gather(1, best).all())
    # Ties go to the lower index.
    assert NofM(1, 3).mask(torch.zeros(1, 3)).tolist() == [[True, False, False]]


@pytest.mark.filterwarnings("ignore:Sparse BSR")
def test_blocks_stay_or_go_whole() -> None:
    mask = Blocks(0.5, 2, 3).mask(SCORES)
    blocks = mask.reshape(2, 2, 4, 3).transpose(1, 2).reshape(8, 6)
    assert bool((blocks.all(1) == blocks.any(1)).all()) and int(blocks.all(1).sum()) == 4
    sums = SCORES.reshape(2, 2, 4, 3).sum((1, 3)).flatten()
    assert set(blocks.all(1).nonzero()[:, 0].tolist()) == set(sums.topk(4).indices.tolist())
    # Such a matrix is what torch stores as blocked rows, and comes back from it bit for bit.
    weight = SCORES * mask
    sparse = weight.to_sparse_bsr((2, 3))
    assert sparse.values().shape == (4, 2, 3)
    assert_same(sparse.to_dense(), weight)


def test_ends_keep_nothing_and_everything() -> None:
    for pattern in (Unstructured(1.0), PerRow(1.0), NofM(4, 4), Blocks(1.0, 2, 2)):
        assert bool(pattern.mask(SCORES).all())
    for pattern in (Unstructured(0.0), PerRow(0.0), NofM(0, 4), Blocks(0.0, 2, 2)):
        assert not pattern.mask(SCORES).any()


@pytest.mark.parametrize(
    "pattern, message",
    [
        (NofM(2, 5), "multiple of 5 columns, got 12"),
        (Blocks(0.5, 3, 3), "no whole blocks of 3 x 3"),
        (Given(torch.ones(4, 11, dtype=torch.bool)), "must be bool of shape"),
    ],
)
def test_matrices_that_cannot_have_a_pattern_are_refused(pattern: Pattern, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pattern.span(SCORES.shape)


def test_wrong_patterns_are_refused() -> None:
    for make in (lambda: Unstructured(1.5), lambda: PerRow(-0.1), lambda: Blocks(2.0, 1, 1)):
        with pytest.raises(ValueError, match="keep must be between 0 and 1"):
            make()
    with pytest.raises(ValueError, match="got 3 of 2"):
        NofM(3, 2)
    with pytest.raises(ValueError, match="at least one row"):
        Blocks(0.5, 0, 2)
    with pytest.raises(ValueError, match="NaN"):
        PerRow(0.5).mask(torch.full((2, 2), torch.nan))
