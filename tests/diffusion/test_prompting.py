"""Models sample as the pipelines of diffusers that they come in, from the same noise and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion.calibrate import Generator, sampling_recipe
from diffusion.data import Pictures
from diffusion.denoiser import Denoiser, without_variance
from diffusion.models import load_model
from diffusion.prompting import decoded_by, encoded_by, prompting_of
from diffusion.recipe import Calibration
from secateur.recipe import recipe_of
from tests.contracts import assert_same
from tests.diffusion.pipelines import PIPELINES, random_pipeline

PROMPTS = ("a cat", "two dogs on a boat")
CLASSES = ("3", "141")
STEPS = 3


class Saved:
    """A pipeline in a folder, loaded as commands load it.

    Args:
        name: of `PIPELINES`.
        folder: where it is written.
    """

    def __init__(self, name: str, folder: Path) -> None:
        random_pipeline(name).save_pretrained(folder)
        self.name, self.folder = name, folder
        self.model = load_model(str(folder))
        self.asked = CLASSES if name == "dit" else PROMPTS
        self.size = 4 if self.packed else None
        self.guidance = 1.0 if self.packed else 2.0

    @property
    def packed(self) -> bool:
        return self.name.startswith("flux")

    def generator(self) -> Generator:
        options = Calibration(self.asked, count=2, steps=STEPS, guidance=self.guidance, size=self.size)
        return Generator(self.model, recipe_of(sampling_recipe(str(self.folder), options)))

    def noise(self) -> Tensor:
        shape = self.model.prompting.shape(self.size)
        return torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))

    def latents(self) -> Tensor:
        """Of our trajectories."""
        drawn, indices = self.generator().trajectories(2), torch.arange(2)
        with torch.no_grad():
            predict = drawn.predict(self.model.network, indices)
            return drawn.sampler.sample(predict, self.noise(), drawn.seeds(indices))

    def theirs(self, output: str) -> Any:
        """Of diffusers' own pipeline, from the same noise."""
        options: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": output}
        if self.name == "dit":  # takes no latents, but draws them all at once
            labels, generator = list(map(int, self.asked)), torch.Generator().manual_seed(3)
            return self.model.pipeline(labels, self.guidance, generator=generator, **options).images
        if self.packed:
            options |= {"height": 16, "width": 16, "guidance_scale": 3.5}
            if self.name == "flux-schnell":
                options["max_sequence_length"] = 256  # as its model card says
        else:
            options["guidance_scale"] = self.guidance
        if self.name.startswith("pixart"):
            options |= {"use_resolution_binning": False, "clean_caption": False}
        return self.model.pipeline(list(self.asked), latents=self.noise(), **options).images


@pytest.fixture(scope="module", params=list(PIPELINES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(request.param, tmp_path_factory.mktemp(request.param))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Random networks make latents of very different sizes, whose rounding goes with the largest."""
    return float((found - expected).norm() / expected.norm())


def test_latents_and_pictures_are_those_of_the_pipeline(saved: Saved) -> None:
    latents = saved.latents()
    pictures = saved.model.prompting.decode(latents)
    if saved.name != "dit":
        assert relative_error(latents, saved.theirs("latent")) < 1e-4
    assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1 and float(pictures.std()) > 0.01
    theirs = torch.from_numpy(saved.theirs("np")).permute(0, 3, 1, 2)
    assert pictures.shape == theirs.shape and relative_error(pictures, theirs) < 1e-3
    assert not torch.allclose(latents[0], latents[1])


def test_prompts_matter(saved: Saved) -> None:
    first, second = saved.model.prompting.conditions(saved.asked), saved.model.prompting.conditions(saved.asked[::-1])
    assert list(first) == list(second)
    for name, rows in first.items():
        if name in ("encoder_hidden_states", "pooled_projections", "class_labels"):
            torch.testing.assert_close(rows[0], second[name][1])
            assert not torch.allclose(rows[0].float(), rows[1].float())


def test_pictures_become_latents_that_the_network_can_be_trained_on(saved: Saved, tmp_path: Path) -> None:
    generator = saved.generator()
    drawn = generator.trajectories(2)
    side = 2 * (saved.size * 2 if saved.size else drawn.shape[-1])
    for at in range(2):
        Image.new("RGB", (side + 4, side), (40 + 100 * at, 90, 200)).save(tmp_path / f"{at}.png")
    lines = [json.dumps({"file_name": f"{at}.png", "text": text}) for at, text in enumerate(saved.asked)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    samples = Pictures(tmp_path, side=side, batch_size=1).gather(saved.model, generator.trajectories)
    assert samples.latents.shape == (2, *drawn.shape) and samples.texts == saved.asked
    back = saved.model.prompting.decode(samples.latents)
    assert back.shape == (2, 3, side, side)
    denoiser, times = Denoiser(saved.model.network), torch.full((2,), 500 * saved.model.prompting.timestep_scale)
    with torch.no_grad():
        predicted = denoiser(samples.latents, times, **samples.arguments(torch.device("cpu")))
    assert without_variance(predicted, samples.latents).shape == samples.latents.shape


def test_packing_turns_back() -> None:
    """What the network is trained on is ordered as what it samples."""
    pipeline = random_pipeline("flux-schnell")
    prompting = prompting_of(pipeline)
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = encoded_by(pipeline.vae, pictures)
    packed = prompting.encode(pictures)
    assert packed.shape == (1, 16, 16) and prompting.size(packed) == 4
    assert_same(packed, pipeline._pack_latents(plain, 1, 4, 8, 8))
    assert_same(prompting.decode(packed), decoded_by(pipeline.vae, plain))


def test_a_network_that_is_told_the_size_of_pictures_runs_alone(tmp_path: Path) -> None:
    random_pipeline("pixart-1024").transformer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    options = Calibration(PROMPTS, count=2, steps=1)
    generator = Generator(model, recipe_of(sampling_recipe(str(tmp_path), options)))
    latents = generator.trajectories(2).sample(model.network, torch.arange(2))
    assert latents.shape == (2, 4, 128, 128)
