"""The gradient of a replayed trajectory is that of plain backpropagation, in the memory of one step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from diffusion.trajectory import Guided, Sampler, Trajectories
from diffusion.units import Kind, prunable
from secateur.surgery import Network
from tests.contracts import assert_deterministic, assert_same
from tests.diffusion.models import FAMILIES, random_model
from tests.diffusion.trajectories import CPU, SCHEDULERS, sampler, trajectories

INDICES = torch.tensor([1, 3])


def soft_masks(network: Network) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(3)
    return {g.name: torch.rand(g.size, generator=source).requires_grad_() for g in network.groups()}


def masked_prediction(network: Network, masks: dict[str, Tensor], predicted: Guided) -> Callable[..., Tensor]:
    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        with network.masked(masks):
            return predicted(latents, timestep)

    return predict


def assert_replay_is_plain(taken: Sampler, predict: Callable[..., Tensor], noise: Tensor, inputs: list[Tensor]) -> None:
    """The same latents bit for bit, and gradients by noise and inputs to 1e-5."""
    seeds = tuple(range(len(noise)))
    weights = torch.randn(noise.shape, generator=torch.Generator().manual_seed(5))
    found = []
    for run in (lambda z: taken.sample(predict, z, seeds), lambda z: taken.replayed(predict, z, seeds, inputs)):
        start = noise.clone().requires_grad_()
        latents = run(start)
        found.append((latents.detach(), torch.autograd.grad((weights * latents).mean(), [start, *inputs])))
    assert_same(found[0][0], found[1][0])
    for plain, replayed in zip(found[0][1], found[1][1], strict=True):
        assert bool(plain.any())
        torch.testing.assert_close(replayed, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 6])
def test_gradients_of_masks_and_noise_are_those_of_backpropagation(name: str, steps: int) -> None:
    network, calibration = prunable(random_model("dit")), trajectories()
    masks = soft_masks(network)
    predict = masked_prediction(network, masks, calibration.predict(network.module, INDICES))
    noise = calibration.noise(INDICES, CPU)
    assert_replay_is_plain(sampler(name, steps), predict, noise, list(masks.values()))


@pytest.mark.parametrize(
    "scheduler",
    [
        UniPCMultistepScheduler(),
        PNDMScheduler(),
        HeunDiscreteScheduler(),
        LCMScheduler(),
        DDIMScheduler(thresholding=True),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_other_schedulers_are_restored_too(scheduler: Any) -> None:
    network, calibration = prunable(random_model("dit")), trajectories()
    masks = soft_masks(network)
    predict = masked_prediction(network, masks, calibration.predict(network.module, INDICES))
    noise = calibration.noise(INDICES, CPU)
    assert_replay_is_plain(Sampler(scheduler, 5), predict, noise, list(masks.values()))


def test_multistep_gradients_go_through_the_history() -> None:
    """Without the history the gradient would be another: a step that forgets is told apart."""
    network, calibration, taken = prunable(random_model("dit")), trajectories(), sampler("dpm_multistep", 6)
    predict = calibration.predict(network.module, INDICES)
    point = taken.start(calibration.noise(INDICES, CPU))
    counts = [len(point.tensors())]
    with torch.no_grad():
        for index in range(3):
            point = taken.denoise(predict, point, index, (0, 1))
            counts.append(len(point.tensors()))
    assert counts == [1, 2, 3, 3]
    before = point.with_leaves()
    after = taken.denoise(predict, before, 3, (0, 1))
    gradients = torch.autograd.grad(after.latents.square().sum(), before.tensors(), allow_unused=True)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_guidance(family: str) -> None:
    name = "flow_euler" if family in ("sd3", "flux") else "ddim"
    kinds: tuple[Kind, ...] = ("heads",) if family == "unet2d" else ("heads", "neurons")
    network = prunable(random_model(family), kinds)
    calibration = trajectories(family, steps=3, name=name, guidance=3.0)
    masks = soft_masks(network)
    predict = masked_prediction(network, masks, calibration.predict(network.module, INDICES))
    assert_replay_is_plain(calibration.sampler, predict, calibration.noise(INDICES, CPU), list(masks.values()))


def test_guidance_is_its_formula() -> None:
    model, latents, time = random_model("dit"), torch.randn(2, 1, 8, 8), torch.tensor(500)
    cold, warm = {"class_labels": torch.tensor([10, 10])}, {"class_labels": torch.tensor([1, 2])}
    with torch.no_grad():
        c, u = Guided(model, warm)(latents, time), Guided(model, cold)(latents, time)
        assert_same(Guided(model, warm, cold, 1.0)(latents, time), c)
        assert_same(Guided(model, warm, cold, 4.0)(latents, time), u + 4.0 * (c - u))


class SavedBytes:
    """Counts bytes that graphs hold at once, of tensors that are no parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> Any:
        held = _Held(tensor)
        if tensor.untyped_storage().data_ptr() not in self.known:
            size = tensor.numel() * tensor.element_size()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(held, self._release, size)
        return held

    def _release(self, size: int) -> None:
        self.now -= size


class _Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def peak_of(steps: int, replay: bool, name: str = "ddim") -> int:
    network, calibration = prunable(random_model("dit")), trajectories()
    masks, taken, noise = soft_masks(network), sampler(name, steps), calibration.noise(INDICES, CPU)
    predict = masked_prediction(network, masks, calibration.predict(network.module, INDICES))
    count = SavedBytes(network.module)
    with torch.autograd.graph.saved_tensors_hooks(count.pack, lambda held: held.tensor):
        if replay:
            latents = taken.replayed(predict, noise, (0, 1), list(masks.values()))
        else:
            latents = taken.sample(predict, noise, (0, 1))
        latents.square().mean().backward()
    return count.peak


@pytest.mark.parametrize("name", ["ddim", "dpm_multistep"])
def test_activation_memory_does_not_grow_with_the_steps(name: str) -> None:
    few, many = peak_of(5, True, name), peak_of(50, True, name)
    assert 0 < many <= 1.1 * few
    assert peak_of(5, False, name) > 4 * few


def test_replaying_a_step_is_one_call_of_the_model_each_way() -> None:
    model, calibration, calls = random_model("dit"), trajectories(), []
    predicted = calibration.predict(model, INDICES)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        calls.append((float(timestep), torch.is_grad_enabled()))
        return predicted(latents, timestep)

    noise = calibration.noise(INDICES, CPU).requires_grad_()
    calibration.sampler.replayed(predict, noise, (0, 1)).sum().backward()
    times = [float(t) for t in calibration.sampler.timesteps]
    assert calls == [(t, False) for t in times] + [(t, True) for t in reversed(times)]


def test_sampling_is_that_of_diffusers() -> None:
    model, calibration = random_model("dit"), trajectories(steps=5)
    scheduler: Any = DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction")
    scheduler.set_timesteps(5)
    latents = calibration.noise(INDICES, CPU)
    with torch.no_grad():
        for time in scheduler.timesteps:
            output = model(latents, timestep=time.expand(2), class_labels=INDICES).sample
            latents = scheduler.step(output, time, latents).prev_sample
    assert_same(calibration.sample(model, INDICES), latents)


@pytest.mark.parametrize("name", ["ddim_eta", "dpm_sde", "dpm_multistep"])
def test_a_trajectory_is_the_same_in_every_batch_and_depends_on_its_seed(name: str) -> None:
    model, calibration = random_model("dit"), trajectories(name=name)
    both = assert_deterministic(lambda: calibration.sample(model, INDICES))
    alone = calibration.sample(model, INDICES[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(trajectories(name=name, seed=1).sample(model, INDICES), both)


def test_dropout_is_replayed() -> None:
    model, calibration = random_model("dit"), trajectories()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
            module.train()
    noise = calibration.noise(INDICES, CPU)
    weight = model.get_parameter("transformer_blocks.0.ff.net.2.weight")
    assert_replay_is_plain(calibration.sampler, calibration.predict(model, INDICES), noise, [weight])


def test_what_is_given_is_left_as_it_was() -> None:
    scheduler, _ = SCHEDULERS["dpm_multistep"]
    before = repr(vars(scheduler))
    taken, calibration = Sampler(scheduler, 4), trajectories()
    for _ in range(2):
        taken.sample(calibration.predict(random_model("dit"), INDICES), calibration.noise(INDICES, CPU), (0, 1))
    assert repr(vars(scheduler)) == before


def test_latents_that_are_not_finite_name_the_step() -> None:
    calibration = trajectories(steps=4)
    noise = calibration.noise(INDICES, CPU)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        return latents * (float("nan") if timestep < 600 else 1.0)

    for run in (calibration.sampler.sample, calibration.sampler.replayed):
        with pytest.raises(ValueError, match=r"not finite after step 3 of 4 \(time step 499\)"):
            run(predict, noise, (0, 1))


def test_bad_input_is_named() -> None:
    scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="takes no \\['etta'\\]"):
        Sampler(scheduler, 4, {"etta": 1.0})
    with pytest.raises(ValueError, match="1 seeds do not fit a batch of latents \\(2, 1, 8, 8\\)"):
        Sampler(scheduler, 4).sample(lambda z, _: z, torch.zeros(2, 1, 8, 8), (0,))
    with pytest.raises(ValueError, match="conditions\\['class_labels'\\] must be a tensor of 3 rows"):
        Trajectories(Sampler(scheduler, 4), (1, 8, 8), 3, {"class_labels": torch.arange(2)})
    with pytest.raises(ValueError, match="count"):
        Trajectories(Sampler(scheduler, 4), (1, 8, 8), 0)
