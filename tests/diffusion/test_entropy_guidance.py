from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffusion.entropy_guidance import EntropyGuidance, prediction_entropy
from diffusion.noising import Noising
from diffusion.trajectory import Sampler
from tests.contracts import assert_deterministic

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
SPREAD = 0.8


def classify(x: Tensor) -> Tensor:
    """Logits of the two components of a mixture of Gaussians."""
    return -(x[:, None] - MEANS).square().sum(-1) / (2 * SPREAD**2)


def exact(noising: Noising):
    """The denoiser of the mixture, in closed form."""

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        index = int(timestep.flatten()[0])
        alpha, sigma = float(noising.alphas[index]), float(noising.sigmas[index])
        variance = (alpha * SPREAD) ** 2 + sigma**2
        apart = noisy[:, None] - alpha * MEANS
        share = (-apart.square().sum(-1) / (2 * variance)).softmax(-1)
        score = -(share[..., None] * apart).sum(1) / variance
        clean = (noisy + sigma**2 * score) / alpha
        index = torch.full((len(noisy),), index)
        return noising.target(clean, -sigma * score, index)

    return predict


def sample(strength: float, prediction: str = "epsilon", count: int = 100) -> Tensor:
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing")
    noising = Noising.of(scheduler)
    guided = EntropyGuidance(exact(noising), classify, noising, strength)
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return Sampler(scheduler, 25).sample(guided, noise, tuple(range(count)))


def test_strength_0_changes_nothing_bit_for_bit():
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    noising = Noising.of(scheduler)
    noise = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    plain = Sampler(scheduler, 25).sample(exact(noising), noise, tuple(range(20)))
    assert torch.equal(sample(0.0, count=20), plain)


def test_mean_entropy_rises_with_the_strength():
    entropies = [float(prediction_entropy(classify(sample(strength))).mean()) for strength in (-1.0, 0.0, 1.0)]
    assert entropies == sorted(entropies)
    assert entropies[2] > 1.3 * entropies[1] > 1.6 * entropies[0]


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_what_the_network_predicts_does_not_matter(prediction):
    torch.testing.assert_close(sample(2.0, prediction, 50), sample(2.0, "epsilon", 50), rtol=1e-3, atol=1e-3)


def test_the_score_is_moved_by_the_gradient_of_the_entropy():
    noising = Noising(torch.tensor([0.6]).double(), torch.tensor([0.8]).double(), torch.arange(1), "epsilon")
    noisy = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    predict, step = exact(noising), torch.tensor(0)
    clean = (noisy - 0.8 * predict(noisy, step)) / 0.6
    (gradient,) = torch.autograd.grad(prediction_entropy(classify(clean)).sum(), noisy)
    moved = EntropyGuidance(predict, classify, noising, 3.0)(noisy, step)
    torch.testing.assert_close(-moved / 0.8, (-predict(noisy, step) / 0.8 + 3 * gradient).detach())
    assert not moved.requires_grad


def test_nothing_but_noise_is_left_unguided_and_the_same_call_gives_the_same():
    noising = Noising(torch.zeros(1).double(), torch.ones(1).double(), torch.arange(1), "v_prediction")
    guided = EntropyGuidance(lambda x, t: 2 * x, classify, noising, 5.0)
    assert torch.equal(guided(torch.ones(3, 2), torch.tensor(0)), torch.full((3, 2), 2.0))
    assert_deterministic(lambda: sample(2.0, count=10))


def test_entropy():
    torch.testing.assert_close(prediction_entropy(torch.zeros(2, 4)), torch.full((2,), 4.0).log())
