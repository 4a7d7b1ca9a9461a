"""Ready-made objectives: labelled batches, and a network against its own outputs with noise."""

from __future__ import annotations

import torch
from torch import nn

from secateur.importance import Disturbed, Supervised, Taylor
from secateur.surgery import Network, trace
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.networks import convolutional, perceptron
from tests.secateur.toys import generator, rank_correlation

INPUTS = torch.randn(24, 4, generator=generator(1), dtype=torch.float64)


def network() -> Network:
    return trace(perceptron(4, 10, 3), INPUTS)


def test_supervised_losses_are_those_of_evaluation_mode_and_leave_the_mode_alone() -> None:
    module = convolutional(groups=1)
    images = torch.randn(6, 2, 6, 6, generator=generator(2), dtype=torch.float64)
    target, labels = trace(module, images), torch.arange(6) % 3
    expected = nn.functional.cross_entropy(module(images), labels)
    module.train()
    module[2].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    losses = list(Supervised([(images, labels), (images[:3], labels[:3])]).losses(target))
    torch.testing.assert_close(losses[0], expected)
    assert losses[0].requires_grad and len(losses) == 2
    assert module.training and module[1].training and not module[2].training
    assert_same(before, dict(module.state_dict()))


def test_against_its_own_outputs_a_network_has_no_gradient_but_for_noise() -> None:
    target = network()
    still = Taylor("square").score(target, Disturbed([INPUTS], sigma=0.0))
    assert all(bool((score == 0).all()) for score in still.values())
    moved = assert_deterministic(lambda: Taylor("square").score(target, Disturbed([INPUTS])))
    assert all(bool((score > 0).all()) for score in moved.values())


def test_the_tensor_that_is_disturbed_can_be_one_of_several() -> None:
    module = perceptron(4, 10, 3)

    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, module(x)

    single = list(Disturbed([INPUTS], seed=1).losses(module))
    of_pair = list(Disturbed([INPUTS], seed=1, read=lambda pair: pair[1]).losses(Pair()))
    assert_same(single, of_pair)


def test_squared_gradients_of_noise_are_the_gauss_newton_diagonal() -> None:
    module = perceptron(3, 2, bias=False)
    inputs, sigma, draws = INPUTS[:5, :3], 0.3, 3000
    total = torch.zeros(2, 3, dtype=torch.float64)
    for loss in Disturbed([inputs] * draws, sigma).losses(module):
        total += torch.autograd.grad(loss, module[0].weight)[0].square()
    # dy_nk / dw_ki = x_ni, over n * k = 10 outputs.
    diagonal = 4 * sigma**2 / 10**2 * inputs.square().sum(0).expand(2, 3)
    torch.testing.assert_close(total / draws, diagonal, rtol=0.1, atol=0)


def test_the_ranking_is_stable_over_the_seeds_of_the_noise() -> None:
    target = network()
    scores = [next(iter(Taylor("square").score(target, Disturbed([INPUTS] * 60, seed=s)).values())) for s in (1, 2)]
    assert rank_correlation(*scores) > 0.8
