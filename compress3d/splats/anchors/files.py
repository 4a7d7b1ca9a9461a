"""Neural fields as one safetensors file: the tensors of anchors or forest, the networks, and the settings as JSON."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from compress3d.splats.anchors.field import NeuralField
from compress3d.splats.anchors.forest import ForestField
from compress3d.splats.anchors.scaffold import ScaffoldField
from secateur.tensor_files import TensorFormat

FORMAT = TensorFormat("secateur neural field", 1)

_METHODS: dict[str, type[NeuralField]] = {field.method: field for field in (ScaffoldField, ForestField)}
_HALVED = ("features", "inner_features", "root_features")


def save_field(path: str | os.PathLike[str], field: NeuralField, *, half_features: bool = False) -> int:
    """Write all that is needed to decode a field; a reader that knows the method needs nothing else.

    Args:
        path: the file, which is replaced whole.
        field: its tensors are written as float32, indices as int32.
        half_features: features as float16, so that what is read is rounded.

    Returns:
        The bytes of the file.
    """
    fields = {"method": field.method, "units": len(field), "settings": field.settings_record()}
    tensors = {name: _stored(name, tensor, half_features) for name, tensor in field.state_dict().items()}
    return FORMAT.save(path, tensors, fields)


def load_field(path: str | os.PathLike[str]) -> NeuralField:
    """The field that `save_field` wrote, in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, of another version, or damaged; names the file and what is wrong.
    """
    return FORMAT.load(path, _check, _field)


def field_bytes(field: NeuralField, *, half_features: bool = False) -> dict[str, int]:
    """Bytes of each tensor as `save_field` stores it, networks included; the file adds its header to their sum."""
    stored = {name: _stored(name, tensor, half_features) for name, tensor in field.state_dict().items()}
    return {name: tensor.numel() * tensor.element_size() for name, tensor in stored.items()}


def _stored(name: str, tensor: Tensor, half_features: bool) -> Tensor:
    kind = torch.float32 if tensor.is_floating_point() else torch.int32
    if half_features and name in _HALVED:
        kind = torch.float16
    return tensor.detach().cpu().to(kind).contiguous()


def _restored(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"tensor {name!r} holds NaN or infinite numbers")
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def _field(header: dict[str, Any], tensors: dict[str, Tensor]) -> NeuralField:
    state = {name: _restored(name, tensor) for name, tensor in tensors.items()}
    return _METHODS[header["method"]].from_state(header["settings"], state)


def _check(header: dict[str, Any]) -> None:
    method, settings = header.get("method"), header.get("settings")
    if method not in _METHODS:
        raise ValueError(f"method {method!r}; known are {list(_METHODS)}")
    if not isinstance(settings, dict) or not all(isinstance(value, int | float) for value in settings.values()):
        raise ValueError("settings must be numbers by name")
