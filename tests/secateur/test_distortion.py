"""Budgets by curves against brute force, and curves against runs."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget, allocate, allocate_knapsack, fill
from secateur.distortion import Curve, RateDistortion, additivity, allocate_by_tables, levels, measure_curves
from secateur.importance import Magnitude
from secateur.maths import topk_mask
from secateur.units import Scores, UnitGroup
from tests.contracts import assert_allocator_keeps_its_contracts, assert_exact_budget, assert_same
from tests.secateur.test_allocation import problem
from tests.secateur.toys import Perceptron, generator, regression


def curves_for(sizes: list[int], steps: int, seed: int, convex: bool = True) -> dict[str, Curve]:
    curves = {}
    for index, size in enumerate(sizes):
        counts = levels(size, steps)
        falls = torch.rand(len(counts) - 1, generator=generator(seed + index), dtype=torch.float64)
        if convex:
            falls = falls.sort(descending=True).values
        losses = torch.cat([falls.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
        curves[f"g{index}"] = Curve(counts, losses)
    return curves


@pytest.mark.parametrize("seed", range(3))
def test_the_split_equals_brute_force_for_4_layers_of_6_levels(seed: int) -> None:
    sizes = [10, 10, 5, 20]
    scores, groups = problem(sizes, [1.0], seed, min_keep=0)
    curves = curves_for(sizes, 5, seed, convex=False)
    for limit in (6, 17, 30):
        keep = RateDistortion(curves)(scores, groups, Budget(limit=limit))
        best = min(
            sum(float(curve.losses[level]) for curve, level in zip(curves.values(), chosen, strict=True))
            for chosen in product(range(6), repeat=4)
            if sum(int(curve.counts[level]) for curve, level in zip(curves.values(), chosen, strict=True)) <= limit
        )
        # What whole levels leave of the budget is filled, which only lowers the loss.
        assert sum(int(kept.sum()) for kept in keep.values()) == limit
        reached = sum(float(curve.losses[curve.counts <= int(keep[name].sum())][-1]) for name, curve in curves.items())
        assert reached <= best + 1e-12


def test_convex_curves_make_it_the_greedy_marginal_allocation() -> None:
    sizes = [6, 9]
    scores, groups = problem(sizes, [1.0], 0, min_keep=0)
    curves = curves_for(sizes, 100, 3)
    for limit in range(16):
        counts = [0, 0]
        for _ in range(limit):
            falls = [
                float(curve.losses[count] - curve.losses[count + 1]) if count < size else -1.0
                for curve, count, size in zip(curves.values(), counts, sizes, strict=True)
            ]
            counts[falls.index(max(falls))] += 1
        for solver in ("exact", "multiplier"):
            keep = RateDistortion(curves, solver)(scores, groups, Budget(limit=limit))  # type: ignore[arg-type]
            assert [int(kept.sum()) for kept in keep.values()] == counts


@pytest.mark.parametrize("solver", ["exact", "multiplier"])
def test_allocating_by_curves_keeps_the_contracts(solver) -> None:
    sizes = [30, 5, 12]
    scores, groups = problem(sizes, [1.0, 4.0], seed=0, min_keep=2)
    budgets = [Budget(share=0.5), Budget(limit=17), Budget(limit=60, cost="bytes"), Budget(limit=1e9)]
    assert_allocator_keeps_its_contracts(RateDistortion(curves_for(sizes, 8, 0), solver), scores, groups, budgets)


def two_layers(seed: int = 0) -> tuple[Perceptron, Tensor]:
    data = regression(seed=seed)
    return Perceptron.random(5, 24, 2, seed=seed), data.inputs


class Deep:
    """Two hidden layers as two groups: what the curves are measured on."""

    def __init__(self) -> None:
        self.lower, self.inputs = two_layers()
        self.upper = Perceptron.random(2, 24, 3, seed=5)

    def tensors(self):
        return {f"lower.{name}": value for name, value in self.lower.tensors().items()} | {
            f"upper.{name}": value for name, value in self.upper.tensors().items()
        }

    def groups(self):
        return tuple(UnitGroup(name, 24, (), {}, 1) for name in ("lower", "upper"))

    def masked(self, masks):
        from contextlib import ExitStack

        stack = ExitStack()
        for name, part in (("lower", self.lower), ("upper", self.upper)):
            stack.enter_context(part.masked({"layer.hidden": masks[name]}))
        return stack


def run(model: Deep) -> Tensor:
    return model.upper(model.lower(model.inputs))


def scores_of(model: Deep) -> Scores:
    parts = (("lower", model.lower), ("upper", model.upper))
    return {name: Magnitude(2.0).score(part)["layer.hidden"] for name, part in parts}


def test_curves_are_the_change_of_the_output_and_nearly_add_up_at_low_ratios() -> None:
    model = Deep()
    scores = scores_of(model)
    curves = measure_curves(model, run, scores, steps=6)  # type: ignore[arg-type]
    dense = run(model)
    for name, curve in curves.items():
        assert curve.counts[0] == 1 and curve.counts[-1] == 24 and float(curve.losses[-1]) == 0
        masks = {other: torch.ones(24) for other in curves} | {
            name: topk_mask(scores[name], int(curve.counts[2])).float()
        }
        with model.masked(masks):
            assert float(curve.losses[2]) == pytest.approx(float((run(model) - dense).square().mean()))
    keep = {name: topk_mask(score, 22) for name, score in scores.items()}
    assert 0.8 < additivity(model, run, keep) < 1.2  # type: ignore[arg-type]
    full = {name: torch.ones(24, dtype=torch.bool) for name in scores}
    assert additivity(model, run, full) == 1  # type: ignore[arg-type]


def test_measured_curves_split_better_than_the_same_share_of_each_layer() -> None:
    model = Deep()
    scores = scores_of(model)
    allocator = RateDistortion(measure_curves(model, run, scores, steps=24))  # type: ignore[arg-type]
    dense = run(model)

    def distortion(keep) -> float:
        with model.masked({name: kept.float() for name, kept in keep.items()}):
            return float((run(model) - dense).square().mean())

    split = allocator(scores, model.groups(), Budget(share=0.75))
    assert sum(int(kept.sum()) for kept in split.values()) == 36
    assert distortion(split) <= distortion({name: topk_mask(score, 18) for name, score in scores.items()})


def test_tables_equal_brute_force() -> None:
    scores = {f"g{i}": torch.rand(4, generator=generator(i), dtype=torch.float64) for i in range(3)}
    groups = [UnitGroup(name, 4, (), min_keep=0) for name in scores]
    # Latency falls in steps, and not always.
    tables = {name: torch.tensor([0.0, 2.5, 2.5, 6.0, 5.5]) * (1 + i) for i, name in enumerate(scores)}
    for limit in (0.0, 4.0, 12.5, 20.0, 33.0):
        keep = allocate_by_tables(scores, groups, tables, limit)
        spent = sum(float(tables[name][int(kept.sum())]) for name, kept in keep.items())
        worths = [
            sum(
                float(score.sort(descending=True).values[:count].sum())
                for score, count in zip(scores.values(), counts, strict=True)
            )
            for counts in product(range(5), repeat=3)
            if sum(float(tables[name][count]) for name, count in zip(scores, counts, strict=True)) <= limit
        ]
        assert spent <= limit
        assert sum(float(scores[name][kept].sum()) for name, kept in keep.items()) == pytest.approx(max(worths))


def test_a_limit_that_does_not_bind_keeps_everything_whatever_the_costs() -> None:
    scores = {"g": torch.rand(5, generator=generator())}
    table = torch.rand(6, generator=generator(1), dtype=torch.float64).sort().values
    groups = [UnitGroup("g", 5, ())]
    assert bool(allocate_by_tables(scores, groups, {"g": table}, float(table[-1]), cells=3)["g"].all())
    # A coarse grid never exceeds the limit.
    kept = allocate_by_tables(scores, groups, {"g": table}, float(table[3]) + 1e-3, cells=20)["g"]
    assert float(table[int(kept.sum())]) <= float(table[3]) + 1e-3


def test_linear_tables_are_the_knapsack() -> None:
    scores, groups = problem([7, 5], [1.0], 1, min_keep=1)
    scores = {name: score.abs() for name, score in scores.items()}
    groups = [
        UnitGroup(g.name, g.size, (), {"macs": torch.full((g.size,), price)}, 1)
        for g, price in zip(groups, (2.0, 3.0), strict=True)
    ]
    tables = {g.name: torch.arange(g.size + 1) * float(g.cost["macs"][0]) for g in groups}
    for limit in (5.0, 11.0, 16.0, 29.0):
        by_table = allocate_by_tables(scores, groups, tables, limit)
        by_cost = allocate_knapsack(scores, groups, Budget(limit=limit, cost="macs"))
        for name in scores:
            assert_same(by_table[name], by_cost[name])


def test_the_knapsack_keeps_the_contracts() -> None:
    scores, groups = problem([30, 5, 12], [1.0, 4.0, 2.5], seed=0, min_keep=2)
    budgets = [Budget(share=0.5), Budget(limit=17), Budget(limit=60, cost="bytes"), Budget(limit=1e9)]
    assert_allocator_keeps_its_contracts(allocate_knapsack, scores, groups, budgets)


def test_the_knapsack_of_equal_costs_is_global_competition() -> None:
    scores, groups = problem([30, 5, 12], [1.0], seed=2, min_keep=1)
    scores = {name: score.abs() for name, score in scores.items()}
    for share in (0.1, 0.5, 0.9):
        assert_same(
            allocate_knapsack(scores, groups, Budget(share=share)), allocate(scores, groups, Budget(share=share))
        )


def test_the_knapsack_is_worth_more_than_taking_the_best_while_they_fit() -> None:
    scores = {"g": torch.tensor([10.0, 6.0, 6.0, 1.0])}
    groups = [UnitGroup("g", 4, (), {"macs": torch.tensor([5e9, 3e9, 3e9, 1e9])}, min_keep=0)]
    budget = Budget(limit=6e9, cost="macs")
    assert allocate_knapsack(scores, groups, budget)["g"].tolist() == [False, True, True, False]
    assert allocate(scores, groups, budget)["g"].tolist() == [True, False, False, True]


def test_filling_adds_to_a_choice_in_order() -> None:
    scores, groups = problem([6, 6], [1.0], 0, min_keep=0)
    chosen = {"g0": topk_mask(scores["g0"], 2), "g1": topk_mask(scores["g1"], 1)}
    keep = fill(chosen, scores, groups, Budget(limit=9), [1, 0])
    assert [int(kept.sum()) for kept in keep.values()] == [3, 6]
    assert_exact_budget(keep, groups, Budget(limit=9))
    assert bool((keep["g0"] | ~chosen["g0"]).all())


def test_wrong_curves_are_refused() -> None:
    scores, groups = problem([4, 4], [1.0], 0, min_keep=2)
    curves = curves_for([4, 4], 4, 0)
    with pytest.raises(ValueError, match="no curve for group 'g1'"):
        RateDistortion({"g0": curves["g0"]})(scores, groups, Budget(share=0.5))
    with pytest.raises(ValueError, match="ends at 5 of 4 units"):
        RateDistortion(curves | {"g1": Curve(levels(5, 5), torch.zeros(6))})(scores, groups, Budget(share=0.5))
    with pytest.raises(ValueError, match="cannot hold"):
        RateDistortion(curves)(scores, groups, Budget(limit=3))
    with pytest.raises(ValueError, match="ascend"):
        Curve(torch.tensor([0, 0]), torch.zeros(2))
    with pytest.raises(ValueError, match="finite"):
        Curve(torch.tensor([0, 1]), torch.tensor([torch.nan, 0]))
    with pytest.raises(ValueError, match="solver"):
        RateDistortion(curves, "greedy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="table of 5 costs"):
        allocate_by_tables(scores, groups, {"g0": torch.zeros(4)}, 3)
    with pytest.raises(ValueError, match="finite scores"):
        allocate_knapsack({name: score * torch.inf for name, score in scores.items()}, groups, Budget(share=0.5))
