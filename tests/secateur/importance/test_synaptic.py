"""Pruning at initialisation: conservation of flow, gradient flow, and SNIP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur.allocation import Budget
from secateur.granularity import Granularity, Rows, Unstructured, Weights
from secateur.importance import GraSP, Magnitude, SynFlow, Taylor
from secateur.importance.synaptic import absolute
from tests.contracts import assert_deterministic, assert_permutes, assert_same, assert_scores_fit
from tests.secateur.networks import convolutional, errors, perceptron
from tests.secateur.toys import Perceptron, quadratic, random_quadratic, regression
from tests.secateur.toys import Weights as Vector


def rectifier() -> nn.Sequential:
    return perceptron(6, 12, 10, 8, 3, bias=False, activation=nn.ReLU)


@pytest.mark.parametrize("granularity", [Unstructured(), Rows()], ids=repr)
def test_each_layer_carries_the_whole_flow(granularity: Granularity) -> None:
    module = rectifier()
    target = Weights(module, granularity)
    with absolute(module), torch.no_grad():
        flow = module(torch.ones(1, 6, dtype=torch.float64)).sum()
    for score in SynFlow((1, 6), share=1.0, rounds=1).score(target).values():
        torch.testing.assert_close(score.sum(), flow)
        assert bool((score >= 0).all())


def test_what_comes_into_a_unit_goes_out() -> None:
    module = rectifier()
    first, second, *_ = SynFlow((1, 6), share=1.0, rounds=1).score(Weights(module)).values()
    torch.testing.assert_close(first.view(12, 6).sum(dim=1), second.view(10, 12).sum(dim=0))


def test_everything_is_given_back_bit_for_bit() -> None:
    for module, shape in [(rectifier(), (1, 6)), (convolutional(), (1, 2, 6, 6))]:
        with torch.no_grad():
            next(module.parameters()).view(-1)[:2] = torch.tensor([-0.0, -1e-320], dtype=torch.float64)
        module.train()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        target = Weights(module)
        scores = assert_deterministic(lambda shape=shape, target=target: SynFlow(shape, 0.1, rounds=5).score(target))
        assert_scores_fit(scores, target.groups())
        assert_same(before, dict(module.state_dict()))
        assert module.training and all(part.training for part in module.modules())
        assert all(parameter.grad is None for parameter in module.parameters())


def test_it_is_given_back_after_an_error() -> None:
    module = rectifier()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RuntimeError):
        SynFlow((1, 7), 0.5, rounds=2).score(Weights(module))
    assert_same(before, dict(module.state_dict()))


def test_rounds_keep_layers_alive_that_one_shot_cuts_through() -> None:
    module = perceptron(50, 40, 2, 40, 40, 5, bias=False, activation=nn.ReLU)
    share = 30 / sum(weight.numel() for weight in module.parameters())
    target = Weights(module, min_keep=0)

    def smallest(criterion: Any) -> int:
        keep = target.granularity.allocate(criterion.score(target), target.groups(), Budget(share=share))
        assert sum(int(mask.sum()) for mask in keep.values()) == 30
        return min(int(mask.sum()) for mask in keep.values())

    assert smallest(SynFlow((1, 50), share, rounds=100)) > 0
    assert smallest(Magnitude()) == 0


def test_the_best_are_what_the_rounds_kept() -> None:
    target = Weights(rectifier())
    scores = SynFlow((1, 6), 0.3, rounds=7).score(target)
    keep = target.granularity.allocate(scores, target.groups(), Budget(share=0.3))
    for name, mask in keep.items():
        assert bool((scores[name][mask] >= 0).all()) and bool((scores[name][~mask] < 0).all())


class Masked:
    """Weights that are masked as any network is, where SynFlow writes zeros."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.module = weights, weights.module
        self.tensors, self.groups, self.masked = weights.tensors, weights.groups, weights.masked

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.weights(*inputs)


@pytest.mark.parametrize("rounds", [1, 4, 300])
def test_weights_that_a_round_removed_are_as_good_as_masked(rounds: int) -> None:
    criterion = SynFlow((1, 6), 0.2, rounds)
    expected = criterion.score(Masked(Weights(rectifier())))  # type: ignore[arg-type]
    assert_same(criterion.score(Weights(rectifier())), expected)


def gradient_flow(target: Any, objective: Any) -> float:
    total = 0.0
    tensors = {name: t for name, t in target.tensors().items() if t.is_floating_point()}
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    losses = list(objective.losses(target))
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(tensors.values()))
    for tensor, gradient in zip(tensors.values(), gradients, strict=True):
        tensor.requires_grad_(False)
        total += float(gradient.square().sum())
    return 0.5 * total


def test_grasp_is_the_slope_of_the_gradient_flow() -> None:
    hessian, minimum = random_quadratic(6)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    gradient = hessian @ (weights - minimum)
    scores = GraSP().score(Vector(weights), quadratic(hessian, minimum))["blocks"]
    torch.testing.assert_close(scores, weights * (hessian @ gradient))
    before, step = gradient_flow(Vector(weights.clone()), quadratic(hessian, minimum)), 1e-6
    for index in range(6):
        moved = weights.clone()
        moved[index] *= 1 - step
        slope = (gradient_flow(Vector(moved), quadratic(hessian, minimum)) - before) / step
        assert slope == pytest.approx(-float(scores[index]), rel=1e-3)


@pytest.mark.parametrize("criterion", [GraSP(), GraSP("central_differences", params=("first", "second"))], ids=repr)
def test_grasp_keeps_the_contracts(criterion: GraSP) -> None:
    target = Perceptron.random(5, 7, 2)
    scores = assert_deterministic(lambda: criterion.score(target, regression()))
    assert_scores_fit(scores, target.groups())
    assert_permutes(
        lambda t: criterion.score(t, regression()), target, Perceptron.permuted, "layer.hidden", rtol=1e-4, atol=1e-7
    )


def test_both_ways_to_grasp_agree() -> None:
    target, data = Weights(perceptron(4, 6, 2)), errors(perceptron(4, 6, 2, seed=3), 4)
    exact, differences = (GraSP(method).score(target, data) for method in ("double_backward", "central_differences"))
    for name, score in exact.items():
        torch.testing.assert_close(differences[name], score, rtol=1e-3, atol=1e-5)


def test_snip_is_taylor_over_elements() -> None:
    module = perceptron(4, 6, 2)
    data = errors(module, 4, samples=8)
    (loss,) = data.losses(module)
    parameters = dict(module.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    for name, score in Taylor(reduce="elements").score(Weights(module), data).items():
        torch.testing.assert_close(score, (gradients[name] * parameters[name]).detach().abs().flatten())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SynFlow((1, 6), share=0.0), "share"),
        (lambda: SynFlow((1, 6), share=0.5, rounds=0), "rounds"),
        (lambda: SynFlow((1, 6), share=0.5).score(Weights({"w": torch.ones(2, 2)})), "wraps a module"),
        (lambda: GraSP().score(Weights(rectifier())), "needs an Objective"),
    ],
)
def test_wrong_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
