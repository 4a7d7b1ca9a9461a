"""The script that trains the demo vision transformers runs from pictures to a folder that loads."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

import torch
from PIL import Image
from transformers import ViTForImageClassification

from secateur.datasets.fashion_mnist import INSTALLED
from vit.images import PREPROCESSOR, read_preparation
from vit.tasks.segmenter import ViTForPatchSegmentation

ROOT = Path(__file__).resolve().parents[2]
NEEDS_FASHION = pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs Debian's dataset-fashion-mnist")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_demo_vit", ROOT / "scripts" / "train_demo_vit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_demo_vit", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "QUICK_STEPS", 2)
    monkeypatch.setattr(module, "QUICK_PICTURES", 32)
    return module


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("digits", ViTForImageClassification),
        pytest.param("fashion", ViTForImageClassification, marks=NEEDS_FASHION),
        pytest.param("marked", ViTForImageClassification, marks=NEEDS_FASHION),
        pytest.param("segmentation", ViTForPatchSegmentation, marks=NEEDS_FASHION),
    ],
)
def test_a_quick_run_ends_in_a_folder_that_loads(script: ModuleType, tmp_path: Path, model: str, kind: Any) -> None:
    options = argparse.Namespace(model=model, quick=True, work=tmp_path, output=None)
    script.main(options)
    folder = tmp_path / "quick" / f"{model}-vit"
    card = (folder / "README.md").read_text()
    assert "2 steps of" in card and f"# {model}-vit" in card
    network = kind.from_pretrained(folder, local_files_only=True)
    size = network.config.image_size
    grey = Image.fromarray(torch.arange(size**2, dtype=torch.uint8).view(size, size).numpy())
    pixels = read_preparation(folder / PREPROCESSOR)(grey)
    assert pixels.shape == (1, 1, size, size) and pixels.min() == -1
    weights = (folder / "model.safetensors").read_bytes()
    script.main(options)  # goes on from the end of the training
    assert (folder / "model.safetensors").read_bytes() == weights
