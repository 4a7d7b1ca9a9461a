"""SAP's counts against its formula and on vectors whose sparsity is known."""

from __future__ import annotations

import math

import pytest
import torch

from secateur.harness.reports import pq_index
from secateur.sparsity_adaptive import SparsityAdaptive
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.toys import generator

SIZES = {
    "a": torch.rand(400, generator=generator(1), dtype=torch.float64) ** 4,
    "b": torch.rand(100, generator=generator(2), dtype=torch.float64),
}


@pytest.mark.parametrize("method", [SparsityAdaptive(), SparsityAdaptive(0.5, 2.0, 0.1, 1.3, 0.5)], ids=repr)
def test_counts_are_the_formulas(method: SparsityAdaptive) -> None:
    keep = assert_deterministic(lambda: method.round(SIZES))
    for name, size in SIZES.items():
        d, p, q = len(size), method.p, method.q
        bound = d * (1 + method.eta) ** (-q / (q - p)) * (1 - pq_index(size, p, q).index) ** (p * q / (q - p))
        assert int((~keep[name]).sum()) == math.floor(d * min(method.gamma * (1 - bound / d), method.beta))
        assert float(size[keep[name]].min()) >= float(size[~keep[name]].max())


def test_what_is_of_one_size_stays_and_what_is_known_to_be_sparse_keeps_its_support() -> None:
    assert bool(SparsityAdaptive().round({"even": torch.full((50,), 3.0)})["even"].all())
    sparse = torch.zeros(1000, dtype=torch.float64)
    sparse[::20] = 1.0
    method = SparsityAdaptive(beta=1.0)
    assert pq_index(sparse).retained <= 50 + 1e-9
    assert torch.equal(method.round({"sparse": sparse})["sparse"], sparse > 0), "50 of 1,000 entries of one size"
    assert int(SparsityAdaptive(beta=0.3).round({"sparse": sparse})["sparse"].sum()) == 700


def test_rounds_are_nested_and_a_beta_of_0_changes_nothing() -> None:
    assert all(bool(kept.all()) for kept in SparsityAdaptive(beta=0.0).round(SIZES).values())
    first = SparsityAdaptive(beta=0.4).round(SIZES)
    second = SparsityAdaptive(beta=0.4).round(SIZES, first)
    assert all(not bool((second[name] & ~first[name]).any()) for name in SIZES)
    assert sum(int(kept.sum()) for kept in second.values()) < sum(int(kept.sum()) for kept in first.values())


def test_over_all_groups_the_entries_compete_and_units_permute() -> None:
    method = SparsityAdaptive(by_group=False)
    keep = method.round(SIZES)
    both = torch.cat(list(SIZES.values()))
    assert int(torch.cat(list(keep.values())).sum()) == len(both) - method.pruned(both)
    assert keep["b"].double().mean() > keep["a"].double().mean()
    order = torch.randperm(400, generator=generator(3))
    assert_same(method.round({"a": SIZES["a"][order], "b": SIZES["b"]})["a"], keep["a"][order])


def test_bad_input_is_refused_by_group() -> None:
    with pytest.raises(ValueError, match="'a' must be finite"):
        SparsityAdaptive().round({"a": torch.tensor([1.0, float("nan")])})
    with pytest.raises(ValueError, match="mask of 400 units for group 'a'"):
        SparsityAdaptive().round(SIZES, {})
    with pytest.raises(ValueError, match="beta in"):
        SparsityAdaptive(beta=1.5)
