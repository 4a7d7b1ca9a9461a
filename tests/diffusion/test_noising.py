"""Noise as diffusers' schedulers add it; losses in any space are weights of the latents' error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.noising import LatentLoss, MinSnr, NoiseLoss, Noising, Prediction, VelocityLoss, Weighting

diffusers = pytest.importorskip("diffusers")

INDICES = torch.tensor([0, 3, 250, 700, 998])
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample", "flow")


def normal(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noising(prediction: Prediction) -> Noising:
    if prediction == "flow":
        return Noising.of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    return Noising.of(diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction))


def test_noise_and_velocity_are_those_of_diffusers() -> None:
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    ours = Noising.of(scheduler)
    latents, noise = normal(0), normal(1)
    torch.testing.assert_close(ours.add(latents, noise, INDICES), scheduler.add_noise(latents, noise, INDICES))
    theirs = scheduler.get_velocity(latents, noise, INDICES)
    torch.testing.assert_close(ours.target(latents, noise, INDICES), theirs)
    assert ours.timesteps.tolist() == list(range(1000))


def test_rectified_flow_is_that_of_diffusers() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = Noising.of(scheduler)
    latents, noise = normal(0, torch.float32), normal(1, torch.float32)
    theirs = scheduler.scale_noise(latents, scheduler.timesteps[INDICES], noise)
    torch.testing.assert_close(ours.add(latents, noise, INDICES), theirs)
    assert torch.equal(ours.timesteps, scheduler.timesteps)
    assert torch.equal(ours.target(latents, noise, INDICES), noise - latents)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_steps_of_sampling_do_not_matter(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    before = Noising.of(scheduler)
    scheduler.set_timesteps(7)
    after = Noising.of(scheduler)
    assert torch.equal(before.sigmas, after.sigmas) and torch.equal(before.timesteps, after.timesteps)
    assert len(after) == 1000


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_gives_the_latents_back(prediction: Prediction) -> None:
    ours, latents, noise = noising(prediction), normal(0), normal(1)
    indices = INDICES if prediction != "epsilon" else INDICES.clamp(max=700)
    noisy = ours.add(latents, noise, indices)
    torch.testing.assert_close(ours.latents(ours.target(latents, noise, indices), noisy, indices), latents)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", [NoiseLoss(), VelocityLoss(), LatentLoss(), MinSnr(2.0)])
def test_weights_make_the_error_that_is_asked_for(prediction: Prediction, weighting: Weighting) -> None:
    ours = noising(prediction)
    indices = torch.tensor([50, 400, 700])
    noisy, right, wrong = normal(0)[:3], normal(1)[:3], normal(2)[:3]
    latents = [ours.latents(predicted, noisy, indices) for predicted in (right, wrong)]
    alphas, sigmas = (table[indices, None, None, None] for table in (ours.alphas, ours.sigmas))
    scale = (alphas**2 + sigmas**2).sqrt()  # 1, but for rectified flows
    spaces: dict[type, list[Tensor]] = {
        NoiseLoss: [(noisy - alphas * value) / sigmas for value in latents],
        VelocityLoss: [(alphas / scale * noisy / scale - value) * scale / sigmas for value in latents],
        LatentLoss: latents,
        MinSnr: [value * (alphas / sigmas).clamp(max=2.0**0.5) for value in latents],
    }
    first, second = spaces[type(weighting)]
    asked = (first - second).square().flatten(1).mean(1)
    own = (right - wrong).square().flatten(1).mean(1)
    torch.testing.assert_close(ours.weights(weighting)[indices] * own, asked)


@pytest.mark.parametrize(
    ("prediction", "weighting"), [("epsilon", NoiseLoss()), ("v_prediction", VelocityLoss()), ("sample", LatentLoss())]
)
def test_the_networks_own_loss_has_no_weights(prediction: Prediction, weighting: Weighting) -> None:
    assert torch.equal(noising(prediction).weights(weighting), torch.ones(1000))
    zero_terminal = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type=prediction)
    assert torch.equal(Noising.of(zero_terminal).weights(weighting), torch.ones(1000))


def test_min_snr_has_the_papers_weights() -> None:
    for prediction, expected in (
        ("epsilon", lambda snr: snr.clamp(max=5) / snr),
        ("v_prediction", lambda snr: snr.clamp(max=5) / (snr + 1)),
        ("sample", lambda snr: snr.clamp(max=5)),
    ):
        ours = noising(prediction)  # type: ignore[arg-type]
        torch.testing.assert_close(ours.weights(MinSnr()), expected(ours.snr()))
    ours = noising("v_prediction")
    torch.testing.assert_close(ours.weights(MinSnr(1e12)), ours.weights(NoiseLoss()))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma"):
        MinSnr(0.0)
    with pytest.raises(ValueError, match="'nothing'"):
        Noising.of(diffusers.DDIMScheduler(prediction_type="nothing"))
    with pytest.raises(ValueError, match="nor the sigmas"):
        Noising.of(Unknown())
    with pytest.raises(ValueError, match="as many"):
        Noising(torch.ones(2), torch.ones(2), torch.arange(3), "sample")
    only_noise = Noising(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.0]), torch.tensor([0, 9]), "epsilon")
    with pytest.raises(ValueError, match="time step 9"):
        only_noise.weights(LatentLoss())


class Unknown:
    config: dict[str, Any] = {}  # noqa: RUF012

    @classmethod
    def from_config(cls, config: Any) -> Unknown:
        return cls()
