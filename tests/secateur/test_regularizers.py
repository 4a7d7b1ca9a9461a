"""Penalties and sparse optimisers against their formulas, and what they leave at 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.granularity import Columns, Rows, Weights
from secateur.importance import Magnitude
from secateur.regularizers import (
    GlobalSparseMomentum,
    GroupDecay,
    GroupLasso,
    HalfSpace,
    Masked,
    Norm,
    Nuclear,
    polarization,
)
from secateur.units import Keep, Member, UnitGroup
from tests.contracts import assert_same
from tests.secateur.networks import perceptron
from tests.secateur.toys import Perceptron, generator, regression

PENALTIES: list[Any] = [Norm(), Norm(2.0), GroupLasso(), GroupDecay(), GroupDecay(0.0)]


def matrix(seed: int = 0) -> Tensor:
    return torch.randn(6, 4, generator=generator(seed), dtype=torch.float64)


def rows(weight: Tensor) -> list[UnitGroup]:
    return list(Weights({"w": weight}, Rows()).groups())


def gradient(penalty: Any, weight: Tensor, groups: list[UnitGroup]) -> Tensor:
    leaf = weight.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(penalty({"w": leaf}, groups), leaf)
    return found


def test_the_formulas() -> None:
    weight = matrix()
    groups, tensors = rows(weight), {"w": weight}
    energies = weight.square().sum(dim=1)
    torch.testing.assert_close(Norm()(tensors, groups), weight.abs().sum())
    torch.testing.assert_close(GroupLasso()(tensors, groups), energies.sqrt().sum())
    gamma = 2 ** (4 * (energies.max() - energies) / (energies.max() - energies.min()))
    torch.testing.assert_close(GroupDecay()(tensors, groups), (gamma * energies).sum())
    torch.testing.assert_close(GroupDecay(0.0)(tensors, groups), energies.sum())
    torch.testing.assert_close(gradient(GroupDecay(), weight, groups), 2 * gamma[:, None] * weight)


def test_the_factors_of_group_decay_lie_between_one_and_two_to_the_alpha() -> None:
    factors = GroupDecay(3.0).factors(torch.tensor([0.0, 5.0, 1.0]))
    assert factors.tolist() == pytest.approx([8.0, 1.0, 2 ** (3 * 0.8)])
    assert GroupDecay(3.0).factors(torch.full((4,), 2.0)).tolist() == [1.0] * 4


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_order_of_units_does_not_matter_and_zeros_have_no_gradient(penalty: Any) -> None:
    weight, order = matrix(), torch.tensor([3, 1, 0, 5, 2, 4])
    groups = rows(weight)
    torch.testing.assert_close(penalty({"w": weight}, groups), penalty({"w": weight[order]}, groups))
    weight[2] = 0
    found = gradient(penalty, weight, groups)
    assert not found[2].any() and bool(torch.isfinite(found).all())


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_masked_leaves_kept_units_alone(penalty: Any) -> None:
    weight = matrix()
    groups, stays = rows(weight), torch.tensor([True, False, True, True, False, True])
    found = gradient(Masked(penalty, {"w": stays}), weight, groups)
    assert not found[stays].any() and bool(found[~stays].any())
    none = {"w": torch.zeros(6, dtype=torch.bool)}
    assert_same(gradient(Masked(penalty, none), weight, groups), gradient(penalty, weight, groups))
    assert float(Masked(penalty, {"w": ~none["w"]})({"w": weight}, groups)) == 0


def test_masked_regularisation_makes_pruning_harmless() -> None:
    network, data = Perceptron.random(5, 7, 2), regression()
    keep = {"layer.hidden": torch.tensor([True, False, True, True, False, True, True])}
    penalty, params = Masked(GroupLasso(), keep), [network.first, network.bias, network.second]
    optimizer = torch.optim.Adam([param.requires_grad_(True) for param in params], lr=0.02)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 400)
        optimizer.zero_grad()
        (torch.stack(list(data.losses(network))).mean() + 0.5 * penalty(network.tensors(), network.groups())).backward()
        optimizer.step()
    with torch.no_grad():
        assert float((network.cut(keep)(data.inputs) - network(data.inputs)).abs().max()) < 1e-3
    assert float(network.first[keep["layer.hidden"]].detach().norm()) > 0.5


def test_penalties_reach_parameters_through_attached_weights() -> None:
    module = perceptron(4, 6, 2)
    target = Weights(module, Rows())
    GroupLasso()(target.attached(), target.groups()).backward()
    norms = module[0].weight.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(module[0].weight.grad, module[0].weight.detach() / norms)


def test_the_nuclear_norm_has_the_gradient_of_its_singular_vectors() -> None:
    weight = matrix()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(Nuclear()({"w": weight, "b": torch.ones(3)}), values.sum())
    torch.testing.assert_close(gradient(Nuclear(), weight, []), left @ right)


def test_polarization_is_zero_where_all_agree_and_drives_means_apart() -> None:
    gates = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert polarization(gates).tolist() == [0, 0, 0.25]
    mixed = torch.tensor([[0.6, 0.4]]).expand(4, 2).clone().requires_grad_(True)
    polarization(mixed).sum().backward()
    assert bool((mixed.grad[:, 0] < 0).all()) and bool((mixed.grad[:, 1] > 0).all())  # type: ignore[index]


def sparse_regression() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, outputs and the weights, 3 of whose 8 columns are not 0."""
    source = generator(3)
    inputs = torch.randn(200, 8, generator=source, dtype=torch.float64)
    truth = torch.randn(4, 8, generator=source, dtype=torch.float64) * (torch.arange(8) < 3)
    noise = 0.05 * torch.randn(200, 4, generator=source, dtype=torch.float64)
    return inputs, inputs @ truth.T + noise, truth


def descend(optimizer: torch.optim.Optimizer, weight: Tensor, steps: int) -> None:
    inputs, outputs, _ = sparse_regression()
    for step in range(steps):
        batch = torch.randperm(200, generator=generator(step))[:50]
        optimizer.zero_grad()
        (0.5 * (inputs[batch] @ weight.T - outputs[batch]).square().sum(dim=1).mean()).backward()
        optimizer.step()


def columns(weight: Tensor) -> list[UnitGroup]:
    return list(Weights({"w": weight.detach()}, Columns()).groups())


def start() -> Tensor:
    return (0.5 * torch.randn(4, 8, generator=generator(7), dtype=torch.float64)).requires_grad_(True)


def test_half_space_finds_the_support_with_more_exact_zeros_than_the_proximal_step() -> None:
    weight, proximal, rate, penalty = start(), start(), 0.05, 0.05
    descend(HalfSpace({"w": weight}, columns(weight), rate, penalty, warmup=100), weight, 300)
    inputs, outputs, truth = sparse_regression()
    for step in range(300):
        batch = torch.randperm(200, generator=generator(step))[:50]
        (0.5 * (inputs[batch] @ proximal.T - outputs[batch]).square().sum(dim=1).mean()).backward()
        with torch.no_grad():
            proximal -= rate * proximal.grad  # type: ignore[operator]
            norms = proximal.norm(dim=0)
            proximal *= (1 - rate * penalty / norms.clamp_min(1e-12)).clamp_min(0)
            proximal.grad = None
    assert ((weight != 0).any(dim=0)).tolist() == (truth != 0).any(dim=0).tolist()
    assert int((proximal == 0).sum()) <= int((weight == 0).sum())


def test_units_at_zero_stay_and_others_turn_by_the_sign_of_the_inner_product() -> None:
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.1, 0.1]], requires_grad=True)
    optimizer = HalfSpace({"w": weight}, rows(weight.detach()), lr=1.0, penalty=0.0)
    weight.grad = torch.tensor([[0.5, 3.0], [1.5, 0.0], [0.0, 0.0]])
    optimizer.step()
    assert weight.tolist() == [[0.5, -3.0], [0.0, 0.0], [pytest.approx(0.1), pytest.approx(0.1)]]
    weight.grad = torch.ones(3, 2)
    optimizer.step()
    assert weight[1].tolist() == [0, 0]
    assert optimizer.alive()["w"].tolist() == [True, False, False]


def test_a_unit_that_went_leaves_the_output_as_it_is() -> None:
    network, data = Perceptron.random(5, 7, 2), regression()
    params = {name: getattr(network, name).requires_grad_(True) for name in ("first", "bias", "second")}
    optimizer = HalfSpace(params, network.groups(), lr=0.1, penalty=0.2, epsilon=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        torch.stack(list(data.losses(network))).mean().backward()
        optimizer.step()
    keep = optimizer.alive()
    assert 0 < int(keep["layer.hidden"].sum()) < 7
    with torch.no_grad():
        torch.testing.assert_close(network.cut(keep)(data.inputs), network(data.inputs), rtol=0, atol=1e-6)


def test_without_penalty_and_turns_it_is_gradient_descent() -> None:
    first, second = start(), start()
    none: Keep = {"w": torch.ones(8, dtype=torch.bool)}
    descend(HalfSpace({"w": first}, columns(first), 0.02, penalty=0.3, epsilon=0.5, keep=none), first, 20)
    descend(torch.optim.SGD([second], lr=0.02), second, 20)
    assert_same(first.detach(), second.detach())


def test_the_dual_variant_lowers_loss_and_norm_and_reaches_its_count() -> None:
    weight = start()
    target = Weights({"w": weight.detach()}, Columns())
    keep = target.granularity.allocate(Magnitude().score(target), target.groups(), Budget(limit=3))
    groups = columns(weight)
    optimizer = HalfSpace({"w": weight}, groups, 0.05, 0.05, keep=keep)
    for seed in range(20):
        gradients = {"w": torch.randn(4, 8, generator=generator(seed), dtype=torch.float64) * 10.0 ** (seed % 5 - 2)}
        values = {"w": weight.detach()}
        weights = optimizer.pull(groups[0], values, gradients)
        step = -(gradients["w"] + weights * values["w"])
        rising = (gradients["w"] * values["w"]).sum(dim=0) < 0
        going = ~keep["w"] & rising
        assert bool(((step * gradients["w"]).sum(dim=0)[going] < 0).all())
        assert bool(((step * values["w"]).sum(dim=0)[going] < 0).all())
        assert not weights[keep["w"]].any()
    descend(optimizer, weight, 300)
    assert bool((keep["w"] <= optimizer.alive()["w"]).all())
    optimizer.finish()
    assert_same(optimizer.alive(), dict(keep))


def test_the_dual_variant_lets_go_of_what_the_loss_does_not_need() -> None:
    weight, keep = start(), {"w": torch.arange(8) < 3}
    optimizer = HalfSpace({"w": weight}, columns(weight), 0.05, 0.05, keep=keep)
    descend(optimizer, weight, 300)
    assert_same(optimizer.alive(), keep)
    _, _, truth = sparse_regression()
    assert float((weight.detach() - truth).abs().max()) < 0.05, "kept units are not held down"


def test_rows_of_nobody_only_descend() -> None:
    weight = torch.ones(3, requires_grad=True)
    group = UnitGroup("g", 1, (Member("w", 0, torch.tensor([[0, 1]])),))
    weight.grad = torch.tensor([3.0, 3.0, 0.5])
    HalfSpace({"w": weight}, [group], lr=1.0, penalty=1.0).step()
    assert weight.tolist() == [0, 0, 0.5]


def test_global_sparse_momentum_with_all_active_is_sgd() -> None:
    first, second = start(), start()
    descend(GlobalSparseMomentum([first], 0.02, active=32, momentum=0.9, weight_decay=1e-3), first, 30)
    descend(torch.optim.SGD([second], lr=0.02, momentum=0.9, weight_decay=1e-3), second, 30)
    assert_same(first.detach(), second.detach())


def test_passive_weights_follow_the_linear_recursion() -> None:
    weight, rate, momentum, decay = torch.tensor([2.0, 1.0], dtype=torch.float64, requires_grad=True), 0.1, 0.9, 0.05
    optimizer = GlobalSparseMomentum([weight], rate, active=1, momentum=momentum, weight_decay=decay)
    expected, speed = 1.0, 0.0
    for _ in range(50):
        weight.grad = torch.tensor([1.0, 1e-3], dtype=torch.float64)
        optimizer.step()
        speed = momentum * speed + decay * expected
        expected -= rate * speed
        assert float(weight[1].detach()) == pytest.approx(expected, rel=1e-12)
        if abs(float(weight[0].detach())) < 0.1:
            break


def test_the_active_ones_are_the_largest_of_the_whole_model() -> None:
    params = [torch.ones(5, requires_grad=True), torch.ones(3, requires_grad=True)]
    for param, values in zip(params, ([5.0, 1, 4, 0, 2], [3.0, 6, 0.5]), strict=True):
        param.grad = torch.tensor(values)
    GlobalSparseMomentum(params, 1.0, active=3, momentum=0.0, weight_decay=0.0).step()
    assert [param.tolist() for param in params] == [[-4, 1, -3, 1, 1], [1, -5, 1]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HalfSpace({"w": start()}, [], lr=0.1, epsilon=1.0), "epsilon"),
        (lambda: HalfSpace({"w": start()}, columns(start()), lr=0.1, keep={}), "no mask for group 'w'"),
        (lambda: GlobalSparseMomentum([start()], 0.1, active=-1), "active"),
        (lambda: GroupLasso()({"w": matrix()}, []), "nothing to penalise"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
