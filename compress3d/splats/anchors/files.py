"""Neural fields as one safetensors file: the tensors of anchors or forest, the networks, and the settings as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress3d.splats.anchors.field import NeuralField
from compress3d.splats.anchors.forest import ForestField
from compress3d.splats.anchors.scaffold import ScaffoldField
from secateur.files import replacing_file

FORMAT = "secateur neural field"
VERSION = 1

_HEADER = "secateur"
_FIELDS: tuple[type[NeuralField], ...] = (ScaffoldField, ForestField)
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
    header = {
        "format": FORMAT,
        "version": VERSION,
        "method": field.method,
        "units": len(field),
        "settings": field.settings_record(),
    }
    tensors = {name: _stored(name, tensor, half_features) for name, tensor in field.state_dict().items()}
    with replacing_file(path) as temporary:
        save_file(tensors, temporary, {_HEADER: json.dumps(header, sort_keys=True)})
    return Path(path).stat().st_size


def load_field(path: str | os.PathLike[str]) -> NeuralField:
    """The field that `save_field` wrote, in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, of another version, or damaged; names the file and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            if text is None:
                raise ValueError(f"no header {_HEADER!r}: not a {FORMAT}")
            method, settings = _checked(json.loads(text))
            state = {name: _restored(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  no mapping
        return method.from_state(settings, state)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


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


def _checked(header: object) -> tuple[type[NeuralField], dict[str, float]]:
    """The class and the settings that a header names."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"not a {FORMAT}")
    if header.get("version") != VERSION:
        raise ValueError(f"version {header.get('version')!r} of the format; this reads version {VERSION}")
    for method in _FIELDS:
        if method.method == header.get("method"):
            settings = header.get("settings")
            if not isinstance(settings, dict) or not all(isinstance(value, int | float) for value in settings.values()):
                raise ValueError("settings must be numbers by name")
            return method, settings
    raise ValueError(f"method {header.get('method')!r}; known are {[method.method for method in _FIELDS]}")
