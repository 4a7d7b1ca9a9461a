"""Weights as units: every granularity against the contracts, and against what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation import Budget, allocate
from secateur.granularity import (
    Block,
    Columns,
    Granularity,
    NofM,
    Rows,
    Unstructured,
    Weights,
    keep_n_of_m,
    spread,
)
from secateur.importance import Fisher, Magnitude, MaskTaylor, Taylor
from secateur.units import Keep, Member, fold
from tests.contracts import (
    assert_exact_budget,
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_same,
)
from tests.secateur.networks import convolutional, errors, perceptron
from tests.secateur.toys import generator

GRANULARITIES: list[Granularity] = [Unstructured(), NofM(2, 4), Block(1, 2), Block(2, 4), Rows(), Columns()]


def network() -> nn.Sequential:
    return perceptron(8, 6, 4)


def target(granularity: Granularity, **options: Any) -> Weights:
    return Weights(
        network() if not isinstance(granularity, (NofM, Block)) else perceptron(8, 8, 4), granularity, **options
    )


def half(each: Weights) -> Keep:
    return each.granularity.allocate(Magnitude().score(each), each.groups(), Budget(share=0.5))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
def test_the_contracts_hold(granularity: Granularity) -> None:
    each, inputs = target(granularity), torch.randn(5, 8, generator=generator(), dtype=torch.float64)
    assert_full_keep_changes_nothing(each)
    assert_mask_of_ones_changes_nothing(each, lambda t: t(inputs))
    assert_mask_equals_cut(each, half(each), lambda t: t(inputs))
    assert_exact_budget(half(each), each.groups(), Budget(share=0.5))
    assert_same(each(inputs), each.module(inputs))  # type: ignore[misc]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
def test_scores_are_sums_over_what_zeros_are_written_to(granularity: Granularity) -> None:
    each = target(granularity)
    for group in each.groups():
        for unit in (0, group.size - 1):
            keep = {g.name: torch.ones(g.size, dtype=torch.bool) for g in each.groups()}
            keep[group.name][unit] = False
            lost = each.weights()[group.name] - each.cut(keep).weights()[group.name]
            assert lost.count_nonzero() == float(group.cost["params"][unit])
            torch.testing.assert_close(Magnitude().score(each)[group.name][unit], lost.abs().sum().float())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
@pytest.mark.parametrize("criterion", [Taylor("elements"), Taylor(second=Fisher()), MaskTaylor()], ids=repr)
def test_gradient_criteria_reach_the_weights(granularity: Granularity, criterion: Any) -> None:
    each = target(granularity)
    before = {name: tensor.detach().clone() for name, tensor in each.module.state_dict().items()}  # type: ignore[union-attr]
    parameters = list(each.module.parameters())  # type: ignore[union-attr]
    scores = criterion.score(each, errors(each.module, 8))  # type: ignore[arg-type]
    assert all(bool(score.any()) for score in scores.values())
    assert_same(before, dict(each.module.state_dict()))  # type: ignore[union-attr]
    assert all(a is b for a, b in zip(parameters, each.module.parameters(), strict=True))  # type: ignore[union-attr]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)


def test_masks_have_the_gradient_of_weights() -> None:
    each = target(Unstructured())
    data = errors(each.module, 8, samples=8)  # type: ignore[arg-type]
    by_mask, by_weight = MaskTaylor().score(each, data), Taylor().score(each, data)
    for name, score in by_mask.items():
        torch.testing.assert_close(score, by_weight[name])


def test_single_weights_need_no_index() -> None:
    for granularity in (Unstructured(), NofM(2, 4), Block(1, 2), Rows(), Columns()):
        each = target(granularity)
        assert all(member.rows is None for group in each.groups() for member in group.members)
        pointers = {weight.data_ptr() for weight in each.weights().values()}
        assert {view.data_ptr() for view in each.tensors().values()} == pointers


def test_views_follow_weights_that_were_replaced() -> None:
    each = target(Unstructured())
    before = each.tensors()["0.weight"]
    assert each.tensors()["0.weight"] is before
    each.module[0].weight.data = torch.zeros(6, 8, dtype=torch.float64)  # type: ignore[index,union-attr]
    assert not each.tensors()["0.weight"].any()


def test_shared_weights_are_masked_wherever_they_are() -> None:
    layer = nn.Linear(3, 3, bias=False)
    each = Weights(nn.Sequential(layer, nn.Sequential(layer)))
    assert [group.name for group in each.groups()] == ["0.weight"]
    inputs = torch.eye(3)
    with each.masked({"0.weight": torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0, 0])}):
        torch.testing.assert_close(each(inputs)[0, 0], layer.weight[0, 0] ** 2)
    assert isinstance(layer.weight, nn.Parameter)


def test_a_failing_module_gets_its_weights_back() -> None:
    each = target(Unstructured())
    ones = {group.name: torch.zeros(group.size) for group in each.groups()}
    with pytest.raises(RuntimeError), each.masked(ones):
        each(torch.zeros(2, 3, dtype=torch.float64))
    assert all(isinstance(parameter, nn.Parameter) for parameter in each.module.parameters())  # type: ignore[union-attr]
    assert each.weights()["0.weight"].any()


def test_tensors_by_name_are_enough() -> None:
    each = Weights({"a": torch.arange(8.0).reshape(2, 4), "bias": torch.ones(3)})
    cut = each.cut(half(each))
    assert cut.weights()["a"].tolist() == [[0, 0, 0, 0], [4, 5, 6, 7]]
    assert each.weights()["a"].count_nonzero() == 7
    with each.masked({"a": torch.zeros(8)}):
        assert not each.effective()["a"].any()
    with pytest.raises(ValueError, match="without a module"):
        each(torch.ones(1))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_n_of_m_is_exact_in_each_block(n: int) -> None:
    scores = torch.randn(400, generator=generator()).round(decimals=0)
    keep = keep_n_of_m(scores, n, 4).view(-1, 4)
    assert bool((keep.sum(dim=1) == n).all())
    for row, kept in zip(scores.view(-1, 4), keep, strict=True):
        order = sorted(range(4), key=lambda i: (-float(row[i]), i))
        assert kept.nonzero()[:, 0].tolist() == sorted(order[:n])


def test_n_of_m_follows_a_budget_down_to_n() -> None:
    each = target(NofM(1, 4))
    scores = Magnitude().score(each)
    for share, count in [(1.0, 4), (0.8, 3), (0.5, 2), (0.25, 1)]:
        keep = each.granularity.allocate(scores, each.groups(), Budget(share=share))
        assert all(bool((mask.view(-1, 4).sum(dim=1) == count).all()) for mask in keep.values())
    with pytest.raises(ValueError, match=r"keeps 0 of 4; this granularity needs 1"):
        each.granularity.allocate(scores, each.groups(), Budget(share=0.2))


def test_blocks_are_tiles_of_the_matrix() -> None:
    matrix = torch.arange(24.0).reshape(4, 6)
    each = Weights({"w": matrix}, Block(2, 3))
    assert Magnitude().score(each)["w"].tolist() == [
        float(t.sum()) for half in matrix.split(2) for t in half.split(3, 1)
    ]


@pytest.mark.parametrize("granularity", [Block(2, 2), Rows(), Columns(), Unstructured()], ids=repr)
def test_spread_is_fold_the_other_way_round(granularity: Granularity) -> None:
    each = Weights({"w": torch.randn(4, 6, generator=generator())}, granularity)
    (group,) = each.groups()
    view = each.tensors()["w"]
    values = torch.arange(float(group.size))
    elements = {"w": spread(values, group.members[0], view).expand(view.shape)}
    torch.testing.assert_close(fold(elements, group), values * 24 / group.size)


def test_spread_leaves_rows_of_nobody_alone() -> None:
    member = Member("w", 1, torch.tensor([[0, 2]]))
    assert spread(torch.zeros(1), member, torch.ones(2, 4)).tolist() == [[0, 1, 0, 1]]


def test_floors_hold_in_each_layer_and_collapse_without() -> None:
    module = perceptron(8, 6, 4)
    with torch.no_grad():
        module[0].weight.mul_(1e-6)
    for floor in (0, 5):
        each = Weights(module, min_keep=floor)
        keep = half(each)
        assert int(keep["0.weight"].sum()) == max(floor, 36 - 24)
        keep = each.granularity.allocate(Magnitude().score(each), each.groups(), Budget(limit=20))
        assert int(keep["0.weight"].sum()) == floor and sum(int(mask.sum()) for mask in keep.values()) == 20


def test_global_magnitude_is_torchs() -> None:
    module, twin = convolutional(), convolutional()
    each = Weights(module, min_keep=0)
    keep = each.granularity.allocate(Magnitude().score(each), each.groups(), Budget(share=0.3))
    layers = [(twin[index], "weight") for index in (0, 3, 6)]
    removed = sum(group.size for group in each.groups()) - sum(int(mask.sum()) for mask in keep.values())
    nn.utils.prune.global_unstructured(layers, nn.utils.prune.L1Unstructured, amount=removed)
    cut = each.cut(keep).weights()
    for index in (0, 3, 6):
        assert_same(cut[f"{index}.weight"].detach(), twin[index].weight.detach() + 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Weights(nn.BatchNorm1d(3)), "no parameter to prune"),
        (lambda: Weights({"w": torch.ones(3, 5)}, NofM(2, 4)), "'w' has rows of 5 weights, which 4 does not divide"),
        (lambda: Weights({"w": torch.ones(3, 5)}, Block(2, 5)), "'w' of 3 x 5 does not divide into 2 x 5"),
        (lambda: Weights({"w": torch.ones(3, 5).T}), "'w' is not contiguous"),
        (lambda: NofM(5, 4), "5 of 4"),
        (lambda: Block(0, 4), "at least 1"),
        (lambda: keep_n_of_m(torch.ones(5), 1, 2), "does not divide"),
        (lambda: keep_n_of_m(torch.tensor([1.0, torch.nan]), 1, 2), "NaN"),
    ],
)
def test_wrong_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_integer_weights_are_passed_over() -> None:
    weights: dict[str, Tensor] = {"q": torch.ones(2, 2, dtype=torch.int8), "w": torch.ones(2, 2)}
    assert [group.name for group in Weights(weights).groups()] == ["w"]


def test_rows_and_columns_compete_as_allocate_has_it() -> None:
    each = target(Rows())
    scores = Magnitude().score(each)
    budget = Budget(share=0.5, cost="params")
    assert_same(each.granularity.allocate(scores, each.groups(), budget), allocate(scores, each.groups(), budget))
