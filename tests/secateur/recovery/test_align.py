"""Matched networks compute what they did, in the order of another one's units."""

from __future__ import annotations

import copy
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from secateur.recovery.align import WeightMatching
from secateur.recovery.soup import SparseModelSoup
from secateur.surgery import Network, trace
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.networks import perceptron
from tests.secateur.surgery.networks import Dense, Residual, pixels, seeded
from tests.secateur.toys import generator


def noisy(module: nn.Module, noise: float, seed: int = 1) -> nn.Module:
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator(seed)).to(parameter))
    return module


def inner(first: nn.Module, second: nn.Module) -> float:
    return sum(float((a * b).detach().sum()) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("build", [Residual, Dense])
def test_the_permuted_network_computes_the_same_and_is_nearer(build: type[nn.Module]) -> None:
    reference, other = trace(seeded(build), pixels()), trace(seeded(build, seed=7), pixels())
    before = copy.deepcopy(dict(other.module.state_dict()))
    matched, orders = WeightMatching()(other, reference)
    assert any(not torch.equal(order, torch.arange(len(order))) for order in orders.values())
    torch.testing.assert_close(matched(pixels()), other(pixels()), rtol=1e-4, atol=1e-5)
    assert inner(matched.module, reference.module) > inner(other.module, reference.module)
    assert_same(before, dict(other.module.state_dict()))


@pytest.mark.parametrize("build", [Residual, Dense])
def test_a_shuffled_copy_is_put_back_in_order(build: type[nn.Module]) -> None:
    reference = trace(seeded(build), pixels())
    # Matching with a stranger shuffles the units without changing the function.
    shuffled, _ = WeightMatching()(reference, trace(seeded(build, seed=7), pixels()))
    back = assert_deterministic(lambda: dict(WeightMatching()(shuffled, reference)[0].module.state_dict()))
    assert_same(back, dict(reference.module.state_dict()))


def test_a_network_matched_with_itself_stays_as_it_is() -> None:
    network = trace(seeded(Residual), pixels())
    matched, orders = WeightMatching()(network, network)
    assert_same(dict(network.module.state_dict()), dict(matched.module.state_dict()))
    assert all(torch.equal(order, torch.arange(len(order))) for order in orders.values())


def test_one_layers_order_is_the_best_of_all() -> None:
    first, second = (trace(perceptron(3, 5, 2, seed=seed).float(), torch.ones(2, 3)) for seed in (0, 1))
    matched, orders = WeightMatching()(second, first)
    (order,) = orders.values()
    assert_same(matched.tensors()["2.weight"].detach(), second.tensors()["2.weight"].detach()[:, order])

    def product(order: tuple[int, ...]) -> Tensor:
        a, b = (network.tensors() for network in (first, second))
        rows = list(order)
        return (
            (a["0.weight"] * b["0.weight"][rows]).sum()
            + (a["0.bias"] * b["0.bias"][rows]).sum()
            + (a["2.weight"] * b["2.weight"][:, rows]).sum()
            + (a["2.bias"] * b["2.bias"]).sum()
        )

    best = max(float(product(order).detach()) for order in permutations(range(5)))
    assert inner(matched.module, first.module) == pytest.approx(best, rel=1e-5)


def test_a_shuffled_and_noisy_copy_can_be_averaged_once_it_is_matched() -> None:
    reference = trace(seeded(Residual), pixels())
    shuffled, _ = WeightMatching()(reference, trace(seeded(Residual, seed=7), pixels()))
    apart = Network(noisy(shuffled.module, 1e-3), shuffled.groups())
    matched, _ = WeightMatching()(apart, reference)
    wanted = reference(pixels())
    errors = [
        (SparseModelSoup()([reference.module, other.module]).module(pixels()) - wanted).abs().mean()
        for other in (apart, matched)
    ]
    assert errors[1] < 0.05 * errors[0]


def test_other_networks_are_refused() -> None:
    first, second = (trace(perceptron(3, width, 2).float(), torch.ones(2, 3)) for width in (5, 6))
    with pytest.raises(ValueError, match=r"differ in \['0.bias', '0.weight', '2.weight'\]"):
        WeightMatching()(first, second)
    with pytest.raises(ValueError, match="sweeps"):
        WeightMatching(sweeps=0)
