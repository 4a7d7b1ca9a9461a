"""A denoising network as an ONNX file, for runtimes that start a layer in less time than Python does."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.files import replacing_file
from secateur.logs import only_errors

LARGEST_BYTES = 2**31 - 1
"""Of a protobuf message, which an ONNX file with its weights inside is."""


def write_onnx(network: nn.Module, path: str | os.PathLike[str], inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Write a network of diffusers, pruned or not, with its weights inside; returns its inputs' names in their order.

    The file takes inputs of exactly these shapes, and gives the prediction.

    Args:
        network: as `diffusion.load` or `from_pretrained` gives it; it is put into evaluation mode.
        path: replaced only when all is written.
        inputs: arguments by name, see `diffusion.inputs.example_inputs`; those that are no tensors are fixed.

    Raises:
        ModuleNotFoundError: onnxscript is not installed.
        ValueError: the weights take more than an ONNX file holds.
    """
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > LARGEST_BYTES:
        raise ValueError(f"{path}: an ONNX file holds 2.1 GB at most, and the weights have {size / 1e9:.1f} GB")
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    fixed = {name: value for name, value in inputs.items() if name not in tensors} | {"return_dict": False}
    module = _Positional(network.eval(), tuple(tensors), fixed)
    # The exporter warns of torch's own code, and that there is no torchvision.
    with warnings.catch_warnings(), only_errors("torch.onnx"), replacing_file(Path(path)) as temporary:
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(tensors.values()),
            temporary,
            input_names=list(tensors),
            output_names=["prediction"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return tuple(tensors)


class _Positional(nn.Module):
    """The network with its tensors by position, which is what the exporter names inputs by."""

    def __init__(self, network: nn.Module, names: tuple[str, ...], fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.names, self.fixed = network, names, dict(fixed)

    def forward(self, *tensors: Tensor) -> Tensor:
        prediction: Tensor = self.network(**dict(zip(self.names, tensors, strict=True)), **self.fixed)[0]
        return prediction
