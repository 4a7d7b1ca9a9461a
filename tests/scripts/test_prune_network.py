"""The example script, and README's ten lines, on small networks."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from tests.secateur.surgery.networks import Residual, pixels, seeded

ROOT = Path(__file__).resolve().parents[2]
TITLE = "## Prune your own model in ten lines"


def ten_lines() -> str:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(TITLE)[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


def test_readmes_ten_lines_run_on_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = ten_lines().replace("steps=500", "steps=2")
    assert len([line for line in code.splitlines() if line and not line.startswith("from ")]) <= 10
    export: list[Any] = []
    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **options: export.append(arguments))
    model, images = seeded(Residual), pixels()
    space = {
        "torch": torch,
        "model": model,
        "build_model": Residual,
        "images": images,
        "labels": torch.tensor([0, 3]),
        "dataset": TensorDataset(torch.cat([images] * 32)),
    }
    exec(compile(code, "README.md", "exec"), space)
    small: Any = space["small"]
    assert sum(p.numel() for p in small.module.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(space["again"](images), small.module(images))  # type: ignore[operator]
    assert (tmp_path / "small" / "manifest.json").exists() and export[0][1] == (images,)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prune_network", ROOT / "scripts" / "prune_network.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_prunes_saves_and_exports(script: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    folder = tmp_path / "network"
    record = script.main(argparse.Namespace(output=folder, keep=0.5, train_steps=40, recover_steps=15))
    assert record["multiply_adds"]["cut"] < 0.62 * record["multiply_adds"]["dense"]
    assert record["accuracy"]["recovered"] > 0.5
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "manifest.json", "model.pt2"}
