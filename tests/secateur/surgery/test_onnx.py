"""Cut networks leave torch: their ONNX files run in ONNX Runtime with the same outputs."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.surgery import trace
from tests.secateur.surgery import networks
from tests.secateur.surgery.networks import pixels, seeded, tokens
from tests.secateur.surgery.test_trace import half

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


@pytest.mark.parametrize(
    ("kind", "inputs"), [(networks.Mobile, pixels()), (networks.Transformer, tokens())], ids=["Mobile", "Transformer"]
)
def test_onnx_files_of_cut_networks_run(kind: type[nn.Module], inputs: Tensor, tmp_path: Path) -> None:
    network = trace(seeded(kind), inputs)
    sizes = []
    for number, module in enumerate((network.module, network.cut(half(network)).module)):
        path = tmp_path / f"{number}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (inputs,), path, dynamo=True, external_data=False, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(output), module(inputs), rtol=1e-4, atol=1e-5)
        sizes.append(path.stat().st_size)
    assert sizes[1] < sizes[0]
