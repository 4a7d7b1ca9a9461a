"""Knapsacks against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.solvers.knapsack import choose_by_multiplier, choose_options, integer_costs, knapsack

THINGS = st.lists(st.tuples(st.integers(-3, 20), st.integers(0, 9)), min_size=1, max_size=10)
CURVES = st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 7)), min_size=1, max_size=4), max_size=4)


@given(things=THINGS, capacity=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_knapsack_is_as_good_as_brute_force(things: list[tuple[int, int]], capacity: int) -> None:
    values, costs = np.array(things).T
    chosen = knapsack(values, costs, capacity)
    assert costs[chosen].sum() <= capacity
    sets = np.array(list(product([False, True], repeat=len(things))))
    assert values[chosen].sum() == max((sets @ values)[sets @ costs <= capacity])


def test_a_larger_knapsack_of_18_things_equals_brute_force() -> None:
    source = np.random.default_rng(0)
    values, costs = source.random(18), source.integers(1, 40, 18)
    sets = (np.arange(2**18)[:, None] >> np.arange(18)) & 1
    chosen = knapsack(values, costs, 150)
    assert values[chosen].sum() == pytest.approx((sets @ values)[sets @ costs <= 150].max())


def test_equal_costs_take_the_best_and_the_earlier_of_equals() -> None:
    assert knapsack([1.0, 3.0, 2.0, 3.0], [5, 5, 5, 5], 14).tolist() == [False, True, False, True]
    assert knapsack([1.0, 1.0, 1.0], [2, 2, 2], 4).tolist() == [True, True, False]
    assert knapsack([], [], 3).tolist() == []


@given(curves=CURVES, capacity=st.integers(0, 25))
@settings(max_examples=60, deadline=None)
def test_options_are_as_good_as_brute_force(curves: list[list[tuple[int, int]]], capacity: int) -> None:
    losses = [[loss for loss, _ in curve] for curve in curves]
    costs = [[cost for _, cost in curve] for curve in curves]
    totals = [
        sum(lost[option] for lost, option in zip(losses, options, strict=True))
        for options in product(*[range(len(curve)) for curve in curves])
        if sum(price[option] for price, option in zip(costs, options, strict=True)) <= capacity
    ]
    if not totals:
        for solve in (choose_options, choose_by_multiplier):
            with pytest.raises(ValueError, match="cannot hold"):
                solve(losses, costs, capacity)
        return
    chosen = choose_options(losses, costs, capacity)
    assert sum(lost[option] for lost, option in zip(losses, chosen, strict=True)) == min(totals)
    bisected, _ = choose_by_multiplier(losses, costs, capacity)
    for options in (chosen, bisected):
        assert sum(price[option] for price, option in zip(costs, options, strict=True)) <= capacity


def test_bisection_equals_brute_force_on_convex_curves() -> None:
    source = np.random.default_rng(1)
    # Distinct slopes, so that every total along the hull is one choice.
    losses = [np.sort(source.random(6)).cumsum()[::-1] for _ in range(4)]
    costs = [np.arange(6) for _ in range(4)]
    for capacity in range(21):
        found, _ = choose_by_multiplier(losses, costs, capacity)
        exact = choose_options(losses, costs, capacity)
        assert sum(lost[i] for lost, i in zip(losses, found, strict=True)) == pytest.approx(
            sum(lost[i] for lost, i in zip(losses, exact, strict=True))
        )


def test_no_multiplier_where_everything_fits() -> None:
    assert choose_by_multiplier([[3.0, 0.0], [1.0, 0.0]], [[0, 5], [0, 2]], 7) == ([1, 1], 0.0)


def test_options_that_are_infinitely_lossy_are_never_taken() -> None:
    assert choose_options([[np.inf, 5.0, 0.0]], [[0, 1, 2]], 1) == [1]
    with pytest.raises(ValueError, match="no option of finite loss for"):
        choose_options([[np.inf]], [[0]], 1)


def test_integer_costs_are_exact_where_they_can_be_and_never_too_low() -> None:
    (prices,), capacity = integer_costs([np.array([3e9, 6e9, 9e9])], 13e9)
    assert prices.tolist() == [1, 2, 3] and capacity == 4
    (prices,), capacity = integer_costs([np.array([0.25, 2.5])], 33.3)
    assert prices.tolist() == [1, 10] and capacity == 11
    source = np.random.default_rng(2)
    costs = source.random(50)
    (prices,), capacity = integer_costs([costs], 7.0, cells=300)
    assert (prices * (7.0 / capacity) >= costs * (1 - 1e-9)).all()
    assert (prices * (7.0 / capacity) <= costs + 7.0 / 300).all()
    assert integer_costs([np.array([0.5, 0.0])], 0.0)[0][0].tolist() == [1, 0]


@pytest.mark.parametrize(
    "values, costs, capacity, message",
    [
        ([np.nan], [1], 2, "NaN"),
        ([1.0], [1, 2], 2, "one length"),
        ([1.0], [0.5], 2, "integers"),
        ([1.0], [-1], 2, "not negative"),
        ([1.0], [1], 2.5, "capacity must be an integer"),
        ([np.inf], [1], 2, "finite"),
    ],
)
def test_wrong_knapsacks_are_refused(values: list[float], costs: list[float], capacity: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knapsack(values, costs, capacity)  # type: ignore[arg-type]
