"""Top-k with ties, ranks, sampling without replacement, straight-through gradients and Hessian-vector products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.maths import (
    average_ranks,
    gumbel_scores,
    order_by_score,
    rademacher,
    sample_without_replacement,
    straight_through,
    topk_mask,
)
from tests.contracts import assert_deterministic, assert_same

# Few distinct values, so that ties are the rule.
TIED = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0, float("inf"), float("-inf")]), max_size=30)


@given(TIED, st.data())
@settings(max_examples=60, deadline=None)
def test_topk_keeps_exactly_k_of_the_best_and_the_lower_index_among_ties(
    values: list[float], data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:k]
    mask = topk_mask(torch.tensor(values), k)
    assert mask.nonzero()[:, 0].tolist() == sorted(expected)


@given(TIED)
@settings(max_examples=40, deadline=None)
def test_order_is_from_best_to_worst_with_ties_by_index(values: list[float]) -> None:
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))
    assert order_by_score(torch.tensor(values)).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_topk_of_any_dtype(dtype: torch.dtype) -> None:
    assert topk_mask(torch.tensor([1, 3, 2, 3]).to(dtype), 3).tolist() == [False, True, True, True]


def test_nan_is_rejected_with_a_count() -> None:
    with pytest.raises(ValueError, match="2 NaN among 4 values, the first at index 1"):
        topk_mask(torch.tensor([0.0, torch.nan, torch.nan, 1.0]), 2)


@pytest.mark.parametrize("k", [-1, 4])
def test_k_out_of_range_is_rejected(k: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 3"):
        topk_mask(torch.ones(3), k)


def test_ranks_share_ties_and_do_not_depend_on_scale() -> None:
    scores = torch.tensor([10.0, -1.0, 10.0, 5.0])
    ranks = average_ranks(scores)
    torch.testing.assert_close(ranks, torch.tensor([3.0, 0.5, 3.0, 1.5]).double() / 4)
    assert_same(ranks, average_ranks(scores.exp()))
    assert len(average_ranks(torch.zeros(0))) == 0


def test_sampling_draws_exactly_k_and_never_the_impossible() -> None:
    probabilities = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    for k in range(4):
        mask = sample_without_replacement(probabilities, k, generator)
        assert int(mask.sum()) == k and not bool(mask[[0, 3]].any())
    with pytest.raises(ValueError, match="only 3 of 5"):
        sample_without_replacement(probabilities, 4, generator)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_probabilities_must_be_finite_and_not_negative(bad: float) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        gumbel_scores(torch.tensor([1.0, bad]), torch.Generator())


def test_sampling_follows_successive_draws() -> None:
    """The exact distribution of two draws without replacement, from 20,000 samples."""
    p = torch.tensor([0.5, 0.3, 0.2]).double()
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([sample_without_replacement(p, 2, generator) for _ in range(20_000)])
    left_out = 1 - draws.double().mean(dim=0)
    pairs = {0: (1, 2), 1: (0, 2), 2: (0, 1)}
    expected = [float(p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])) for i, j in pairs.values()]
    torch.testing.assert_close(left_out, torch.tensor(expected).double(), atol=0.015, rtol=0)


def test_sampling_is_determined_by_its_generator() -> None:
    p = torch.rand(100, generator=torch.Generator().manual_seed(1))
    assert_deterministic(lambda: sample_without_replacement(p, 30, torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_straight_through_has_the_values_of_one_and_the_gradient_of_the_other(dtype: torch.dtype) -> None:
    x = torch.linspace(-6, 6, 101).to(dtype).requires_grad_()
    hard, soft = (x > 0).to(dtype), torch.sigmoid(x)
    out = straight_through(hard, soft)
    assert torch.equal(out, hard)
    (gradient,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad(soft.sum(), x)
    assert torch.equal(gradient, expected)


def test_rademacher_signs_are_fair_and_come_from_the_generator() -> None:
    signs = assert_deterministic(lambda: rademacher(torch.zeros(100, 100), torch.Generator().manual_seed(3)))
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 0.03
