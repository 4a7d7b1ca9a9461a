from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vit.models import random_model, transformers
from vit.images import ImagePreparation, preparation_of, read_preparation
from vit.inputs import check_pixels, example_inputs
from vit.models import LoadedModel


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("ViTImageProcessorPil", {"size": {"height": 24, "width": 20}}),
        ("ViTImageProcessorPil", {"size": {"height": 12, "width": 12}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}),
        ("ViTImageProcessorPil", {"size": {"height": 30, "width": 30}, "do_normalize": False}),
        ("BitImageProcessorPil", {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}),
        ("BitImageProcessorPil", {"size": {"shortest_edge": 11}, "crop_size": {"height": 14, "width": 15}}),
        ("DeiTImageProcessorPil", {"size": {"height": 25, "width": 25}, "crop_size": {"height": 16, "width": 16}}),
    ],
)
def test_images_are_prepared_as_transformers_does(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = getattr(transformers, kind, None)
    if theirs is None:
        pytest.skip(f"this version of transformers has no {kind}, which needs no torchvision")
    processor = theirs(**fields)
    processor.save_pretrained(tmp_path)
    ours = read_preparation(tmp_path / "preprocessor_config.json")
    for size in ((33, 41), (41, 33), (20, 20)):
        image = picture(*size)
        expected = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(ours(image), expected, rtol=0, atol=1e-4)


def test_a_value_by_hand() -> None:
    grey = Image.new("RGB", (10, 6), (255, 51, 0))
    prepared = ImagePreparation((4, 4), mean=(0.5, 0.2, 0.1), std=(0.25, 0.5, 0.1))([grey, grey])
    expected = torch.tensor([2.0, 0.0, -1.0])[:, None, None].expand(2, 3, 4, 4)
    torch.testing.assert_close(prepared, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_every_mode(mode: str) -> None:
    assert ImagePreparation((8, 8))(picture(10, 12, mode)).shape == (1, 3, 8, 8)
    assert ImagePreparation((8, 8), mean=(0.5,), std=(0.5,))(picture(10, 12, mode)).shape == (1, 1, 8, 8)


def test_tensors_are_normalised_only() -> None:
    values = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ImagePreparation((8, 8))(values), 2 * values - 1)
    raw = preparation_of({"size": 8, "do_rescale": False, "do_normalize": False})
    torch.testing.assert_close(raw(values), 255 * values)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 9, 8), "must be 8 x 8 pixels, got 9 x 8"),
        (torch.rand(2, 1, 8, 8), r"must be \(batch, 3, height, width\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "divide by 255"),
        (torch.full((3, 8, 8), torch.nan), "NaN"),
        (torch.full((3, 8, 8), 2.0), "floats in \\[0, 1\\]"),
        ([], "there is no image"),
        (["cat.png"], "got str"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagePreparation((8, 8))(images)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"longest_edge": 5}}, "are not understood"),
        ({"size": {"height": 0, "width": 4}}, "at least 1 pixel"),
        ({"image_std": [0.0, 1.0, 1.0]}, "std above 0"),
        ({"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]}, "1 or 3 values"),
        ({"image_mean": "grey"}, "could not convert"),
    ],
)
def test_a_damaged_preprocessor_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        read_preparation(path)


def test_without_a_preprocessor_images_fit_the_configuration() -> None:
    model = random_model("vit", num_channels=1)
    prepared = LoadedModel("tiny", model).preparation()(picture(20, 30))
    assert prepared.shape == example_inputs(model)["pixel_values"].shape
    check_pixels(model, prepared)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 1, 8, 8), r"must be \(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 8, 9), "must be 8 x 8 pixels for this model, got 8 x 9"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "must be floats"),
        (torch.full((1, 3, 8, 8), torch.inf), "NaN or infinity"),
    ],
)
def test_pixels_that_a_model_cannot_read(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pixels(random_model("vit"), pixels)


def test_example_inputs_follow_the_model() -> None:
    with torch.device("meta"):
        model = random_model_on_meta()
    inputs = example_inputs(model, batch=3, size=(8, 12))["pixel_values"]
    assert inputs.shape == (3, 3, 8, 12) and inputs.is_meta and inputs.dtype == torch.float16
    with pytest.raises(ValueError, match="at least 1"):
        example_inputs(model, batch=0)
    with pytest.raises(ValueError, match="Linear has no configuration"):
        example_inputs(torch.nn.Linear(2, 2))


def random_model_on_meta() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    return transformers.ViTModel(config).half()
