"""Selection without sorting gives what allocation by sorting gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.allocation import Budget, allocate
from secateur.selection import keep_top
from secateur.units import UnitGroup
from tests.contracts import assert_allocator_keeps_its_contracts, assert_same
from tests.secateur.toys import generator

NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), 1.0, -1.0, 1e-40]), st.floats(allow_nan=False, width=32)
)


def groups_of(scores: dict[str, Tensor], floors: tuple[int, ...]) -> list[UnitGroup]:
    return [UnitGroup(n, len(s), (), min_keep=f) for (n, s), f in zip(scores.items(), floors, strict=True)]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(NUMBERS, min_size=1, max_size=30),
    st.lists(NUMBERS, max_size=30),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.floats(0, 1),
    st.sampled_from([(torch.float32, torch.float32), (torch.float64, torch.float32), (torch.bfloat16, torch.float32)]),
)
def test_the_same_as_allocate(
    first: list[float],
    second: list[float],
    floors: tuple[int, int],
    share: float,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    scores = {"a": torch.tensor(first, dtype=dtypes[0]), "b": torch.tensor(second, dtype=dtypes[1])}
    groups, budget = groups_of(scores, floors), Budget(share=share)
    try:
        expected = allocate(scores, groups, budget)
    except ValueError:
        with pytest.raises(ValueError, match="floors"):
            keep_top(scores, groups, budget)
        return
    assert_same(keep_top(scores, groups, budget), expected)


def test_more_than_a_chunk() -> None:
    scores = {"a": torch.randn(2_200_000, generator=generator()), "b": torch.zeros(1_200_000)}
    groups = groups_of(scores, (1, 1))
    for limit in (1, 3, 1_500_000, 2_000_000):
        if limit >= 2:
            keep = keep_top(scores, groups, Budget(limit=limit))
            assert sum(int(mask.sum()) for mask in keep.values()) == limit
            left_out = max(float(scores[name][~mask].max()) for name, mask in keep.items())
            kept = scores["a"][keep["a"]].topk(int(keep["a"].sum())).values
            assert float(kept[-1]) >= left_out


def test_the_contracts_of_allocators() -> None:
    scores = {"a": torch.randn(50, generator=generator()), "b": torch.randn(30, generator=generator(1))}
    groups = groups_of(scores, (2, 1))
    assert_allocator_keeps_its_contracts(
        keep_top, scores, groups, [Budget(share=0.3), Budget(limit=17), Budget(limit=900)]
    )


def test_other_costs_go_to_allocate() -> None:
    scores = {"a": torch.randn(9, generator=generator())}
    groups = [UnitGroup("a", 9, (), {"macs": torch.arange(9.0)})]
    budget = Budget(limit=11.0, cost="macs")
    assert_same(keep_top(scores, groups, budget), allocate(scores, groups, budget))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": torch.tensor([1.0, torch.nan])}, "'a' hold 1 NaN"),
        ({"b": torch.ones(2)}, "no scores for group 'a'"),
        ({"a": torch.ones(3)}, r"must be \(2,\)"),
    ],
)
def test_wrong_scores_are_refused(scores: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep_top(scores, [UnitGroup("a", 2, ())], Budget(share=0.5))
