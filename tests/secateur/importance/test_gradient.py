"""First-order criteria against removal, finite differences and one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.importance import Fisher, HessianDiagonal, HessianProduct, MaskHessian, MaskTaylor, Taylor
from secateur.importance.objective import differentiable
from secateur.units import Criterion
from tests.contracts import (
    assert_deterministic,
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_permutes,
    assert_same,
    assert_scores_fit,
)
from tests.secateur.toys import (
    Batches,
    CubedOnce,
    LossOf,
    Perceptron,
    Weights,
    generator,
    mean_loss,
    quadratic,
    random_quadratic,
    rank_correlation,
    regression,
    removal_changes,
)

CRITERIA: list[Criterion] = [
    Taylor(),
    Taylor("square"),
    Taylor("signed"),
    Taylor("elements", params=("first", "second")),
    Taylor(second=Fisher()),
    Taylor("elements", second=HessianProduct()),
    MaskTaylor(),
    MaskTaylor("square"),
    MaskTaylor("signed", second=MaskHessian(4)),
]


def network(hidden: int = 7) -> Perceptron:
    return Perceptron.random(5, hidden, 2)


def test_the_toy_network_keeps_the_contracts() -> None:
    target, inputs = network(), regression().inputs
    keep = {"layer.hidden": torch.tensor([True, False, True, True, False, False, True])}
    assert_full_keep_changes_nothing(target)
    assert_mask_of_ones_changes_nothing(target, lambda each: each(inputs))
    assert_mask_equals_cut(target, keep, lambda each: each(inputs))


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_every_criterion_scores_the_same_each_time_and_leaves_the_target_as_it_was(criterion: Criterion) -> None:
    target = network()
    target.first.requires_grad_(True)
    before = {name: tensor.detach().clone() for name, tensor in target.tensors().items()}
    scores = assert_deterministic(lambda: criterion.score(target, regression()))
    assert_scores_fit(scores, target.groups())
    assert_same(before, {name: tensor.detach() for name, tensor in target.tensors().items()})
    assert [tensor.requires_grad for tensor in target.tensors().values()] == [True, False, False, False]
    assert all(tensor.grad is None for tensor in target.tensors().values()) and target.mask is None


@pytest.mark.parametrize("criterion", CRITERIA[:-1], ids=repr)
def test_scores_permute_with_the_units(criterion: Criterion) -> None:
    assert_permutes(
        lambda target: criterion.score(target, regression()), network(), Perceptron.permuted, "layer.hidden", rtol=1e-9
    )


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_the_same_data_twice_gives_the_same_scores(criterion: Criterion) -> None:
    data = regression()
    twice = Batches(data.inputs.repeat(2, 1), data.outputs.repeat(2, 1), data.size)
    torch.testing.assert_close(criterion.score(network(), twice), criterion.score(network(), data))


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_scores_are_there_without_grad_mode(criterion: Criterion) -> None:
    with torch.no_grad():
        scores = criterion.score(network(), regression())
    assert_same(scores, criterion.score(network(), regression()))


def gradients(target: Perceptron, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [target.first, target.bias, target.second]))


def test_taylor_sums_a_units_elements_first_then_the_absolute_value_then_averages_batches() -> None:
    target, data = network(), regression()
    for name in ("first", "bias", "second"):
        getattr(target, name).requires_grad_(True)
    expected = {reduce: torch.zeros(7, dtype=torch.float64) for reduce in ("abs", "square", "signed", "elements")}
    for loss in data.losses(target):
        first, bias, second = (
            gradient * weights.detach()
            for gradient, weights in zip(
                gradients(target, loss), (target.first, target.bias, target.second), strict=True
            )
        )
        change = -(first.sum(dim=1) + bias + second.sum(dim=0))
        expected["abs"] += change.abs() / 4
        expected["square"] += change.square() / 4
        expected["signed"] += change / 4
        expected["elements"] += (first.abs().sum(dim=1) + bias.abs() + second.abs().sum(dim=0)) / 4
    for reduce, values in expected.items():
        torch.testing.assert_close(Taylor(reduce).score(target, data)["layer.hidden"], values)  # type: ignore[arg-type]


def test_the_mask_gradient_is_taylor_over_the_weights_that_the_mask_multiplies() -> None:
    target, data = network(), regression()
    for reduce in ("abs", "square", "signed"):
        by_mask = MaskTaylor(reduce).score(target, data)
        by_weights = Taylor(reduce, params=("second",)).score(target, data)
        torch.testing.assert_close(by_mask, by_weights)
    hessian, minimum = random_quadratic(12)
    blocks, loss = Weights(torch.randn(12, generator=generator(3), dtype=torch.float64), 3), quadratic(hessian, minimum)
    torch.testing.assert_close(MaskTaylor().score(blocks, loss), Taylor().score(blocks, loss))


def test_a_rectified_layers_two_sides_have_the_same_gradient_times_weight() -> None:
    """The network is homogeneous in what enters a neuron and in what leaves it (SynFlow's conservation law)."""
    target, data = Perceptron.random(5, 7, 2, activation=torch.relu), regression()
    entering = Taylor("signed", params=("first", "bias")).score(target, data)
    leaving = Taylor("signed", params=("second",)).score(target, data)
    torch.testing.assert_close(entering, leaving)


def test_second_order_is_the_exact_change_on_a_diagonal_quadratic() -> None:
    diagonal, minimum = random_quadratic(12)[0].diag(), random_quadratic(12)[1]
    loss = quadratic(diagonal.diag(), minimum)
    target = Weights(torch.randn(12, generator=generator(3), dtype=torch.float64), 3)
    exact = removal_changes(target, loss)
    for second in (HessianDiagonal(1), HessianProduct()):
        torch.testing.assert_close(Taylor("signed", second=second).score(target, loss)["blocks"], exact)
        torch.testing.assert_close(Taylor(second=second).score(target, loss)["blocks"], exact.abs())
    one = Weights(target.weights)
    elements = Taylor("elements", second=HessianDiagonal(1)).score(one, loss)["blocks"]
    torch.testing.assert_close(elements, removal_changes(one, loss).abs())


def test_the_second_order_of_chosen_parameters_is_theirs_alone() -> None:
    target, data, second = network(), regression(), HessianProduct()
    first_order = Taylor("signed", params=("second",)).score(target, data)["layer.hidden"]
    shares = second.quadratic(target, data)["second"].sum(dim=0)
    both = Taylor("signed", second=second, params=("second",)).score(target, data)["layer.hidden"]
    torch.testing.assert_close(both, first_order + 0.5 * shares)


def test_second_order_masks_are_the_exact_change_on_any_quadratic() -> None:
    hessian, minimum = random_quadratic(12)
    target = Weights(torch.randn(12, generator=generator(3), dtype=torch.float64), 3)
    loss = quadratic(hessian, minimum)
    estimate = MaskTaylor("signed", second=MaskHessian(1000)).score(target, loss)["blocks"]
    exact = removal_changes(target, loss)
    assert float((estimate - exact).abs().max()) < 0.1 * float(exact.abs().max())


@pytest.mark.parametrize(
    ("criterion", "least"),
    [(Taylor("square"), 0.9), (MaskTaylor("square"), 0.9), (MaskTaylor("signed", second=MaskHessian(24)), 0.8)],
    ids=["taylor", "mask taylor", "mask taylor, second order"],
)
def test_scores_rank_neurons_of_a_trained_network_as_their_removal_does(criterion: Criterion, least: float) -> None:
    data = regression(size=1)
    target = Perceptron.random(5, 24, 2, seed=4).fitted(replace(data, size=96))
    scores = criterion.score(target, data)["layer.hidden"]
    assert rank_correlation(scores, removal_changes(target, data)) > least


def test_first_order_scores_are_zero_where_a_target_is_compared_with_itself_and_second_order_ones_are_not() -> None:
    target, data = network(), regression()
    own = replace(data, outputs=target(data.inputs))
    assert not MaskTaylor().score(target, own)["layer.hidden"].any()
    second = MaskTaylor(second=MaskHessian(64)).score(target, own)["layer.hidden"]
    assert rank_correlation(second, removal_changes(target, own)) > 0.7


def test_a_loss_that_is_differentiable_once_is_enough() -> None:
    target = Weights(torch.tensor([1.0, -2.0, 0.5]).double())
    loss = LossOf((lambda each: CubedOnce.apply(each.effective()).sum(),))
    cubes = target.weights**3
    torch.testing.assert_close(Taylor("signed").score(target, loss)["blocks"], -3 * cubes)
    torch.testing.assert_close(MaskTaylor("signed").score(target, loss)["blocks"], -3 * cubes)
    second = MaskTaylor("signed", second=MaskHessian(2, method="central_differences")).score(target, loss)["blocks"]
    torch.testing.assert_close(second, -3 * cubes + 3 * cubes, atol=1e-8, rtol=0)


def test_batches_that_share_a_graph_are_refused() -> None:
    class Shared:
        def losses(self, target: Perceptron) -> Iterator[Tensor]:
            activations = torch.tanh(target.bias)
            yield activations.sum()
            yield activations.square().sum()

    with pytest.raises(ValueError, match="batch 1 shares a part of its graph"):
        Taylor().score(network(), Shared())


def test_unused_parameters_score_zero_and_unknown_ones_are_refused() -> None:
    target = network()
    only_second = LossOf((lambda each: (each.second**2).sum(),))
    torch.testing.assert_close(
        Taylor().score(target, only_second)["layer.hidden"], 2 * target.second.square().sum(dim=0)
    )
    with pytest.raises(ValueError, match="batch 0 is not differentiable in any of"):
        Taylor(params=("first", "bias")).score(target, only_second)
    with pytest.raises(ValueError, match=r"no parameters \['third'\]; the target has"):
        Taylor(params=("third",)).score(target, only_second)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ((lambda each: each.bias.sum(), lambda each: each.bias.sum() * torch.nan), "batch 1 must be one finite number"),
        ((lambda each: each.bias,), r"batch 0 must be one finite number, got a tensor of shape \(7,\)"),
        ((lambda each: each.bias.detach().sum(),), "batch 0 is not differentiable"),
        ((lambda each: (each.bias * 0).sqrt().sum(),), "7 values of the gradient of 'bias' are not finite"),
        ((), "no losses"),
    ],
)
def test_objectives_that_fail_are_named_and_leave_nothing_behind(functions: tuple, message: str) -> None:
    target = network()
    for criterion in (Taylor(), MaskTaylor()):
        if criterion == MaskTaylor() and "bias" in message:
            continue
        with pytest.raises(ValueError, match=message if criterion == Taylor() else "batch|no losses"):
            criterion.score(target, LossOf(functions))
        assert not any(tensor.requires_grad for tensor in target.tensors().values()) and target.mask is None


@pytest.mark.parametrize("criterion", [Taylor(), MaskTaylor(), Fisher(), HessianDiagonal(), MaskHessian()], ids=repr)
def test_an_objective_is_needed(criterion: Criterion) -> None:
    with pytest.raises(ValueError, match="needs an Objective"):
        criterion.score(network())


def test_unknown_reductions_are_refused() -> None:
    with pytest.raises(ValueError, match="reduce must be one of"):
        Taylor("sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduce must be one of"):
        MaskTaylor("elements")  # type: ignore[arg-type]


def test_differentiable_restores_what_required_a_gradient_after_an_error() -> None:
    target = network()
    target.second.requires_grad_(True)
    with pytest.raises(RuntimeError, match="stop"), differentiable(target) as tensors:
        assert set(tensors) == {"first", "bias", "second"} and all(each.requires_grad for each in tensors.values())
        raise RuntimeError("stop")
    assert [tensor.requires_grad for tensor in target.tensors().values()] == [False, False, True, False]


def test_mean_loss_of_a_module_with_parameters_scores_alike() -> None:
    """`nn.Parameter`s are scored as plain tensors are, and keep their accumulated gradients."""
    plain, data = network(), regression()
    first, bias, second = (torch.nn.Parameter(each) for each in (plain.first, plain.bias, plain.second))
    module = replace(plain, first=first, bias=bias, second=second)
    module.first.grad = torch.ones_like(module.first)
    assert_same(Taylor().score(plain, data), Taylor().score(module, data))
    assert bool((module.first.grad == 1).all()) and module.second.grad is None
    assert mean_loss(data, module) == mean_loss(data, plain)
