"""ONNX files of networks, run by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.inputs import example_inputs
from diffusion.onnx_file import write_onnx
from diffusion.units import prunable
from secateur.cli import main
from tests.diffusion.models import random_model
from tests.diffusion.recipes import save_dit

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_a_cut_network_predicts_the_same_in_another_runtime(family: str, tmp_path: Path) -> None:
    target = prunable(random_model(family))
    module = target.cut({group.name: torch.arange(group.size) % 2 == 0 for group in target.groups()}).module
    given: dict[str, Any] = example_inputs(module, batch=2, text_tokens=4)
    names = write_onnx(module, tmp_path / "cut.onnx", given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / "cut.onnx", options, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == list(names)
    (found,) = session.run(["prediction"], {name: given[name].numpy() for name in names})
    with torch.no_grad():
        expected = module(**given, return_dict=False)[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cut.onnx"]


def test_the_command_says_what_the_file_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = save_dit(tmp_path / "dit"), tmp_path / "dit.onnx"
    assert main(["diffusion", "export", str(model), "-o", str(output), "--batch", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == output.stat().st_size and found["inputs"]["class_labels"] == [2]
    assert main(["diffusion", "export", str(model), "-o", str(output)]) == 0
    assert "hidden_states" in capsys.readouterr().out


def test_weights_that_no_file_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion.onnx_file.LARGEST_BYTES", 1000)
    model = random_model("dit")
    with pytest.raises(ValueError, match=r"cut\.onnx: an ONNX file holds"):
        write_onnx(model, tmp_path / "cut.onnx", example_inputs(model))
    assert not list(tmp_path.iterdir())
