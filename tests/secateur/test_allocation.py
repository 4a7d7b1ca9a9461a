"""Exact budgets, floors, and the two kinds of competition."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import prune

from secateur.allocation import Allocator, Budget, allocate, allocate_per_group, erdos_renyi_kernel
from secateur.units import Scores, UnitGroup
from tests.contracts import assert_allocator_keeps_its_contracts, assert_exact_budget

ALLOCATORS = [allocate, allocate_per_group]


def problem(
    sizes: list[int], prices: list[float], seed: int, min_keep: int = 1, ties: bool = False
) -> tuple[Scores, list[UnitGroup]]:
    """Groups of the given sizes, with a cost "bytes" drawn from `prices`."""
    generator = torch.Generator().manual_seed(seed)
    scores: Scores = {}
    groups = []
    for index, size in enumerate(sizes):
        values = torch.randn(size, generator=generator)
        scores[f"g{index}"] = values.round() if ties else values
        choice = torch.randint(len(prices), (size,), generator=generator)
        cost = {"bytes": torch.tensor(prices)[choice]}
        groups.append(UnitGroup(f"g{index}", size, (), cost, min_keep))
    return scores, groups


@pytest.mark.parametrize("allocator", ALLOCATORS)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    prices=st.lists(st.sampled_from([1.0, 2.5, 7.0, 236.0]), min_size=1, max_size=3),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 5),
    ties=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_budgets_are_exact(
    allocator: Allocator, sizes: list[int], prices: list[float], share: float, seed: int, ties: bool
) -> None:
    scores, groups = problem(sizes, prices, seed, min_keep=0, ties=ties)
    for budget in (Budget(share=share), Budget(limit=share * sum(sizes)), Budget(share=share, cost="bytes")):
        assert_exact_budget(allocator(scores, groups, budget), groups, budget)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_allocators_keep_their_contracts(allocator: Allocator) -> None:
    scores, groups = problem([30, 5, 12], [1.0, 4.0], seed=0, min_keep=2)
    budgets = [Budget(share=0.5), Budget(limit=17), Budget(limit=60, cost="bytes"), Budget(limit=1e9)]
    assert_allocator_keeps_its_contracts(allocator, scores, groups, budgets)


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("share", [0.29, 0.07, 0.57, 1 / 3])
def test_a_share_of_equal_units_is_met_exactly(allocator: Allocator, share: float) -> None:
    scores, groups = problem([60, 40], [236.0], seed=1)
    for cost in ("units", "bytes"):
        keep = allocator(scores, groups, Budget(share=share, cost=cost))
        assert sum(int(mask.sum()) for mask in keep.values()) == int(share * 100 + 1e-6)


def test_ties_go_to_the_lower_index_and_the_earlier_group() -> None:
    groups = [UnitGroup("a", 3, (), min_keep=0), UnitGroup("b", 3, (), min_keep=0)]
    keep = allocate({"a": torch.ones(3), "b": torch.ones(3)}, groups, Budget(limit=4))
    assert keep["a"].tolist() == [True, True, True] and keep["b"].tolist() == [True, False, False]


def test_a_larger_budget_keeps_a_superset() -> None:
    scores, groups = problem([50, 20], [1.0], seed=2, ties=True)
    for allocator in ALLOCATORS:
        keeps = [allocator(scores, groups, Budget(limit=limit)) for limit in range(4, 71, 6)]
        for smaller, larger in pairwise(keeps):
            assert all(not bool((smaller[name] & ~larger[name]).any()) for name in smaller)


def test_global_competition_equals_torch_global_magnitude_pruning() -> None:
    layers = [torch.nn.Linear(8, 6), torch.nn.Linear(6, 10)]
    with torch.no_grad():
        for index, layer in enumerate(layers):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(index)))
    scores = {str(i): layer.weight.detach().abs().flatten().clone() for i, layer in enumerate(layers)}
    groups = [UnitGroup(name, len(value), (), min_keep=0) for name, value in scores.items()]
    keep = allocate(scores, groups, Budget(share=0.25))
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=81)
    for index, layer in enumerate(layers):
        mask = dict(layer.named_buffers())["weight_mask"]
        assert torch.equal(keep[str(index)], mask.flatten().bool())


def test_a_floor_saves_a_layer_from_collapse() -> None:
    """Global magnitude pruning with a minimum threshold (arXiv 2209.14624)."""
    scores = {"big": torch.rand(100) + 1, "small": (torch.rand(20) + 1) * 1e-6}
    for floor, expected in ((0, 0), (5, 5), (50, 20)):
        groups = [UnitGroup("big", 100, (), min_keep=floor), UnitGroup("small", 20, (), min_keep=floor)]
        keep = allocate(scores, groups, Budget(limit=80))
        assert int(keep["small"].sum()) == expected
        assert int(keep["big"].sum() + keep["small"].sum()) == 80


def test_floors_hold_when_the_budget_is_split_over_groups() -> None:
    scores, _ = problem([2, 100], [1.0], seed=0)
    groups = [UnitGroup("g0", 2, (), min_keep=2), UnitGroup("g1", 100, (), min_keep=1)]
    keep = allocate_per_group(scores, groups, Budget(limit=10))
    assert (int(keep["g0"].sum()), int(keep["g1"].sum())) == (2, 8)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_budget_below_the_floors_is_refused(allocator: Allocator) -> None:
    scores, groups = problem([5, 5], [1.0], seed=0, min_keep=3)
    with pytest.raises(ValueError, match=r"cannot hold the floors .*cost 6"):
        allocator(scores, groups, Budget(limit=5))


def test_a_unit_that_does_not_fit_is_passed_over() -> None:
    cost = {"bytes": torch.tensor([5.0, 9.0, 3.0, 2.0])}
    group = UnitGroup("g", 4, (), cost, min_keep=0)
    keep = allocate({"g": torch.tensor([4.0, 3.0, 2.0, 1.0])}, [group], Budget(limit=10, cost="bytes"))
    assert keep["g"].tolist() == [True, False, True, True]


def test_units_that_cost_nothing_always_stay() -> None:
    group = UnitGroup("g", 3, (), {"ms": torch.tensor([0.0, 1.0, 0.0])}, min_keep=0)
    keep = allocate({"g": torch.tensor([-1.0, 5.0, -2.0])}, [group], Budget(limit=0, cost="ms"))
    assert keep["g"].tolist() == [True, False, True]


def test_infinite_scores_are_allowed() -> None:
    groups = [UnitGroup("g", 4, ())]
    scores = {"g": torch.tensor([float("-inf"), 0.0, float("inf"), float("-inf")])}
    assert allocate(scores, groups, Budget(limit=3))["g"].tolist() == [True, True, True, False]


def test_per_group_keeps_the_same_share_of_each_group_whatever_the_scores() -> None:
    scores, groups = problem([40, 80, 120], [1.0], seed=3)
    scores["g0"] = scores["g0"] * 1e6 + 1e9
    keep = allocate_per_group(scores, groups, Budget(share=0.25))
    assert [int(mask.sum()) for mask in keep.values()] == [10, 20, 30]


def test_per_group_leftovers_go_to_the_largest_remainder() -> None:
    scores, groups = problem([11, 18, 14], [1.0], seed=3)
    keep = allocate_per_group(scores, groups, Budget(limit=20))
    quotas = torch.tensor([11, 18, 14]) * 20 / 43
    expected = quotas.floor()
    expected[(quotas - quotas.floor()).argsort(descending=True)[: int(20 - expected.sum())]] += 1
    assert [int(mask.sum()) for mask in keep.values()] == expected.tolist()


def test_erdos_renyi_kernel_densities_saturate_and_rescale() -> None:
    """Against the equation density_l = min(1, scale * sum(shape) / prod(shape)), solved by hand."""
    shapes = {"conv1": (16, 3, 3, 3), "conv2": (64, 16, 3, 3), "fc": (10, 64)}
    sizes = {"conv1": 432, "conv2": 9216, "fc": 640}
    groups = [UnitGroup(name, size, (), min_keep=0) for name, size in sizes.items()]
    scores = {name: torch.rand(size, generator=torch.Generator().manual_seed(0)) for name, size in sizes.items()}
    densities = erdos_renyi_kernel(shapes)
    assert densities == pytest.approx({"conv1": 25 / 432, "conv2": 86 / 9216, "fc": 74 / 640})
    keep = allocate_per_group(scores, groups, Budget(limit=2057), densities=densities)
    # fc saturates at 640; the other 1417 are shared 25 to 86.
    assert [int(keep[name].sum()) for name in ("conv1", "conv2", "fc")] == [319, 1098, 640]


def test_densities_scale_what_is_kept() -> None:
    scores, groups = problem([100, 100], [1.0], seed=0)
    keep = allocate_per_group(scores, groups, Budget(share=0.3), densities={"g0": 1.0, "g1": 2.0})
    assert [int(mask.sum()) for mask in keep.values()] == [20, 40]
    with pytest.raises(ValueError, match="densities"):
        allocate_per_group(scores, groups, Budget(share=0.3), densities={"g0": 1.0})


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "no scores for group 'g'"),
        ({"g": torch.ones(3)}, r"must be \(2,\)"),
        ({"g": torch.tensor([1.0, torch.nan])}, "'g' hold 1 NaN among 2"),
    ],
)
def test_wrong_scores_are_refused(scores: Scores, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(scores, [UnitGroup("g", 2, ())], Budget(share=0.5))


@pytest.mark.parametrize("cost", [torch.ones(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, torch.inf])])
def test_wrong_costs_are_refused(cost: Tensor) -> None:
    group = UnitGroup("g", 2, (), {"ms": cost})
    with pytest.raises(ValueError, match="cost 'ms' of group 'g'"):
        allocate({"g": torch.ones(2)}, [group], Budget(share=0.5, cost="ms"))


def test_an_unknown_cost_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no cost 'macs'; it has"):
        allocate({"g": torch.ones(2)}, [UnitGroup("g", 2, ())], Budget(share=0.5, cost="macs"))


@pytest.mark.parametrize(("share", "limit"), [(None, None), (0.5, 3.0), (1.5, None), (None, -1.0)])
def test_wrong_budgets_are_refused(share: float | None, limit: float | None) -> None:
    with pytest.raises(ValueError, match=r"share|limit"):
        Budget(share, limit)
