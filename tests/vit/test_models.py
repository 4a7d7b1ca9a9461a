from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vit
from secateur.surgery.cost import count_params
from tests.vit.models import FAMILIES, TorchViT, random_model, run, whole_sam
from vit.models import PUBLISHED, find, load_model
from vit.units import prunable


def write(family: str, folder: Path, **options: Any) -> Any:
    model: Any = random_model(family)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("torch", "fused")])
def test_folders_of_transformers_load(family: str, tmp_path: Path) -> None:
    model = write(family, tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded.network) is type(model) and loaded.cuts is None and not loaded.network.training
    assert torch.equal(run(family)(loaded.network), run(family)(model))
    assert count_params(find(str(tmp_path)).on_meta()) == count_params(model)


def test_pruned_folders_load_with_their_cuts(tmp_path: Path) -> None:
    target = prunable(random_model("vit"), ("heads",))
    network = target.cut({group.name: torch.arange(4) > index for index, group in enumerate(target.groups())})
    vit.save(network, tmp_path)
    loaded = vit.load_model(str(tmp_path))
    assert torch.equal(run("vit")(loaded.network), run("vit")(network)) and loaded.cuts is not None
    assert count_params(find(str(tmp_path)).on_meta()) == count_params(network.module)
    with pytest.raises(ValueError, match="load it with them"):
        load_model(tmp_path, random_weights=True)
    even = target.cut({group.name: torch.arange(4) > 0 for group in target.groups()})
    vit.save(even, tmp_path)
    assert load_model(tmp_path).cuts is None
    assert count_params(find(str(tmp_path)).on_meta()) == count_params(even.module)


def test_a_module_is_taken_as_it_is() -> None:
    model = TorchViT()
    assert load_model(model).network is model
    with pytest.raises(ValueError, match="TorchViT has no configuration with image_size"):
        load_model(model).preparation()


def test_weights_are_never_random(tmp_path: Path) -> None:
    write("vit", tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"intermediate_size": 24}))
    with pytest.raises(ValueError, match=r"fc1.bias. has shape \(20,\), not \(24,\)"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"layers\.3.* is missing"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").unlink()
    torch.save(random_model("vit").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="no weights could be read"):
        load_model(tmp_path)


def test_a_configuration_alone_has_random_weights(tmp_path: Path) -> None:
    write("vit", tmp_path)
    config = tmp_path / "config.json"
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (load_model(config, random_weights=True).network for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(run("vit")(first), run("vit")(second))
    with pytest.raises(FileNotFoundError, match="ask for random_weights"):
        load_model(config)


def test_the_encoder_of_a_whole_sam(tmp_path: Path) -> None:
    whole: Any = whole_sam()
    whole.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, architecture="SamVisionModel").network
    with torch.no_grad():
        expected = whole.get_image_embeddings(run_pixels())
        assert torch.equal(loaded(pixel_values=run_pixels())[0], expected)
    assert count_params(find(str(tmp_path), architecture="SamVisionModel").on_meta()) == count_params(loaded)


def run_pixels() -> torch.Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("id", "params"),
    [
        ("google/vit-base-patch16-224", 86_567_656),
        ("facebook/deit-small-patch16-224", 22_050_664),
        ("facebook/dinov2-small", 22_056_576),
        ("microsoft/swin-tiny-patch4-window7-224", 28_288_354),
        ("facebook/sam-vit-base", 89_670_912),
    ],
)
def test_published_models_are_planned_without_a_download(id: str, params: int) -> None:
    assert id in PUBLISHED
    assert count_params(find(id).on_meta()) == params


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["Nothing"]}, "transformers has no model 'Nothing'"),
        ({"architectures": ["ViTConfig"]}, "transformers has no model 'ViTConfig'"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "no architectures"),
    ],
)
def test_a_configuration_of_no_model_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder, and no repository"):
        load_model("nothing")
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json"):
        load_model(tmp_path)


def test_models_are_built_without_torchvision() -> None:
    code = """
import sys
sys.modules["torchvision"] = None
import torch, transformers, vit
model = transformers.ViTForImageClassification(transformers.ViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4))
target = vit.prunable(model, ("heads", "neurons", "embedding"), vit.example_inputs(model))
print(sum(group.size for group in target.groups()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(2 + 16 + 16)


def test_the_package_does_not_wait_for_torch() -> None:
    code = "import sys, vit; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
