import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from secateur.metrics.distribution import clip_score, cmmd
from secateur.metrics.features.clip import ClipFeatures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights with a tokenizer of single letters."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip") / "clip-toy"
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    letters = [f"{letter}{end}" for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters]
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**layers, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 12},
        vision_config={**layers, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_images_become_embeddings_under_the_folders_name(folder: Path) -> None:
    features = ClipFeatures.load(folder)
    assert (features.name, features.dimensions) == ("clip-toy", 8)
    assert ClipFeatures.load(folder, "CLIP ViT-T/16").name == "CLIP ViT-T/16"
    assert features(images(3, 3, 40, 50)).shape == (3, 8)
    assert cmmd(features(images(6, 3, 32, 32)), features(images(6, 3, 32, 32) ** 3)) > 0


def test_the_model_sees_what_its_processor_would_show_it(folder: Path) -> None:
    features = ClipFeatures.load(folder)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    scaled = interpolate(images(2, 3, 64, 96), (32, 48), mode="bicubic", antialias=True).clamp(0, 1)[..., 8:40]
    with torch.no_grad():
        states = features.model.vision_model(pixel_values=(scaled - mean) / std).pooler_output
        expected = features.model.visual_projection(states)
    torch.testing.assert_close(features(images(2, 3, 64, 96)), expected)


def test_grey_images_are_shown_in_three_channels(folder: Path) -> None:
    features = ClipFeatures.load(folder)
    grey = images(2, 1, 28, 28)
    assert torch.equal(features(grey), features(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        features(images(2, 2, 28, 28))


def test_captions_are_scored_and_cut_ones_counted(folder: Path) -> None:
    features = ClipFeatures.load(folder)
    captions, cut = features.captions(["a bag", "abcdefghijklmnopqrst", "shoe"])
    assert captions.shape == (3, 8)
    assert cut == 1
    scores = clip_score(features(images(3, 3, 32, 32)), captions)
    assert ((scores >= 0) & (scores <= 100)).all()
    torch.testing.assert_close(features.captions(["shoe"])[0], captions[2:])
    with pytest.raises(ValueError, match="no captions"):
        features.captions([])


def test_folders_that_lack_something_say_what(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        ClipFeatures.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        ClipFeatures.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="not that of a CLIP model"):
        ClipFeatures.load(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="no tokenizer"):
        ClipFeatures.load(tmp_path).captions(["a bag"])
