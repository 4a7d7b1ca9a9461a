"""Bad input of the core for networks: one clear error that names the group or the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from secateur.allocation import Allocator, Budget, allocate, allocate_knapsack, allocate_per_group
from secateur.distortion import Curve, RateDistortion, allocate_by_tables
from secateur.granularity import Block, Columns, NofM, Rows, Unstructured, Weights
from secateur.greedy import Stage, prune_greedily
from secateur.importance import Ablation, Fisher, HessianProduct, Lamp, Magnitude, MaskTaylor, Taylor
from secateur.mask_fit import MaskFit, Penalty
from secateur.masks import Sigmoid
from secateur.pruning_callback import PruningCallback
from secateur.schedules import Polynomial
from secateur.selection import keep_top
from secateur.surgery import Network, trace
from secateur.training import fit
from secateur.units import Keep, Member, Scores, UnitGroup
from tests.secateur.networks import BATCHES, Regression, errors, perceptron

GROUPS = (UnitGroup("heads", 4, (), min_keep=2), UnitGroup("channels", 8, (), min_keep=3))
SCORES = {"heads": torch.arange(4.0), "channels": torch.arange(8.0)}
NAN = SCORES | {"channels": torch.tensor([0.0, 1.0, float("nan"), 3.0, 4.0, 5.0, 6.0, 7.0])}
CURVES = {group.name: Curve(torch.arange(group.size + 1), torch.arange(group.size, -1, -1.0)) for group in GROUPS}


def by_tables(scores: Scores, groups: Any, budget: Budget) -> Keep:
    tables = {group.name: torch.arange(group.size + 1.0) for group in groups}
    return allocate_by_tables(scores, groups, tables, budget.amount(groups))


ALLOCATORS: dict[str, Allocator] = {
    "allocate": allocate,
    "per group": allocate_per_group,
    "knapsack": allocate_knapsack,
    "keep_top": keep_top,
    "tables": by_tables,
    "exact distortion": RateDistortion(CURVES),
    "distortion by multiplier": RateDistortion(CURVES, "multiplier"),
}
every_allocator = pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS)


@every_allocator
def test_a_budget_that_floors_make_impossible_names_them(allocator: Allocator) -> None:
    with pytest.raises(ValueError, match=r"heads.*channels"):
        allocator(SCORES, GROUPS, Budget(limit=4))


@every_allocator
def test_nan_scores_name_their_group(allocator: Allocator) -> None:
    with pytest.raises(ValueError, match="'channels'"):
        allocator(NAN, GROUPS, Budget(share=0.5))


@pytest.mark.parametrize("granularity", [Unstructured(), Rows(), Columns(), Block(1, 2), NofM(1, 2)], ids=repr)
def test_nan_scores_of_weights_name_their_parameter(granularity: Any) -> None:
    target = Weights(perceptron(4, 8, 2), granularity)
    scores = Magnitude().score(target)
    scores["2.weight"][0] = float("nan")
    with pytest.raises(ValueError, match=r"'2\.weight'"):
        granularity.allocate(scores, target.groups(), Budget(share=0.5))


def test_a_group_with_no_units_is_named() -> None:
    module = perceptron(4, 8, 2)
    empty = UnitGroup("nobody", 0, (Member("0.weight"),))
    with pytest.raises(ValueError, match="'nobody' has no units"):
        Network(module, [empty])
    with pytest.raises(ValueError, match="nobody"):
        Sigmoid([empty])


CRITERIA: list[Any] = [Magnitude(), Lamp(), Taylor(), MaskTaylor(), Fisher(), HessianProduct(), Ablation()]


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
def test_frozen_networks_are_scored_and_stay_frozen(criterion: Any) -> None:
    module = perceptron(4, 8, 2)
    network, data = trace(module, torch.zeros(2, 4).double()), errors(module, 4)
    free = criterion.score(network, data)
    module.requires_grad_(False)
    torch.testing.assert_close(criterion.score(network, data), free)
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_training_of_frozen_weights_names_them() -> None:
    module = Regression()
    module.network[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    callback = PruningCallback(Magnitude(), Polynomial(), Budget(share=0.5), last_step=4, every=1, regrow=0.5)
    with pytest.raises(ValueError, match=r"'network\.0\.weight'\] have no gradients"):
        fit(module, BATCHES, steps=6, callbacks=[callback])


def test_shared_parameters_are_left_out_of_a_trace_and_count_once_as_weights() -> None:
    module = perceptron(4, 4, 4, 2)
    module[2].weight = module[0].weight  # type: ignore[assignment]
    network = trace(module, torch.zeros(2, 4).double())
    assert "0" in network.left_out and "shared" in network.left_out["0"]
    assert [group.name for group in Weights(module).groups()] == ["0.weight", "4.weight"]


def test_quantised_parameters_are_named_or_passed_over() -> None:
    module = perceptron(4, 8, 2)
    module[2].weight = nn.Parameter(torch.zeros(2, 8, dtype=torch.int8), requires_grad=False)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"'2\.weight' is quantised"):
        trace(module, torch.zeros(2, 4).double())
    assert [group.name for group in Weights(module).groups()] == ["0.weight"]


def test_a_forward_that_fails_names_the_module_where_it_does() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.ReLU(), nn.Linear(6, 2)))
    with pytest.raises(ValueError, match=r"Sequential cannot be traced: module '1\.1'"):
        trace(module, torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda network: prune_greedily(network, [Stage(lambda _: True, 1, "ms")], lambda _: 0.0),
            "group '0'",
        ),
        (lambda network: Sigmoid(network.groups()).penalty("ms"), "group '0'"),
    ],
)
def test_a_cost_that_a_group_lacks_is_named(make: Callable[[Network], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} has no cost 'ms'"):
        make(trace(perceptron(4, 8, 2), torch.zeros(2, 4).double()))


def test_a_loss_that_is_not_finite_stops_the_fit_of_a_mask() -> None:
    network = trace(perceptron(4, 8, 2), torch.zeros(2, 4).double())

    def loss(target: Network, batch: Any) -> Any:
        return target(torch.full((1, 4), torch.nan).double()).sum()

    with pytest.raises(ValueError, match="the loss became nan"):
        fit(MaskFit(network, Sigmoid(network.groups()), loss, Penalty(0.1)), BATCHES, steps=2)
    assert all(parameter.requires_grad for parameter in network.module.parameters())
