"""Compensated scenes as one safetensors file: Gaussians, features and head, with the head's settings as JSON."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from compress3d.splats.compensation import HEADS, CompensationHead
from compress3d.splats.scene import SplatScene
from compress3d.splats.sundae.compensated import FEATURES, CompensatedScene
from secateur.tensor_files import TensorFormat

FORMAT = TensorFormat("secateur compensated scene", 1)

_HEAD = "head."
_SCENE = ("means", "quats", "scales", "opacities", "sh0", "shN")
_KINDS = (torch.float32, torch.float16)


def save_compensated(path: str | os.PathLike[str], compensated: CompensatedScene, *, half: bool = False) -> int:
    """Write all that is needed to show a compensated scene.

    Args:
        path: the file, which is replaced whole.
        compensated: the scene with features and head.
        half: all but the means as float16, so that what is read is rounded.

    Returns:
        The bytes of the file: Gaussians, features and head.

    Raises:
        ValueError: a tensor is not finite, or not as float16.
    """
    tensors = _stored(compensated, half)
    for name, tensor in tensors.items():
        _check_finite(name, tensor)
    fields = {
        "gaussians": len(compensated),
        "antialiased": compensated.scene.antialiased,
        "head": compensated.head.name,
        "settings": compensated.head.settings(),
    }
    return FORMAT.save(path, tensors, fields)


def compensated_bytes(compensated: CompensatedScene, *, half: bool = False) -> dict[str, int]:
    """Bytes of each tensor as `save_compensated` stores it, "head" for all of the network; a header comes on top."""
    sizes: dict[str, int] = {}
    for name, tensor in _stored(compensated, half).items():
        part = "head" if name.startswith(_HEAD) else name
        sizes[part] = sizes.get(part, 0) + tensor.numel() * tensor.element_size()
    return sizes


def load_compensated(path: str | os.PathLike[str]) -> CompensatedScene:
    """What `save_compensated` wrote, in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, of another version, or damaged; names the file and what is wrong.
    """
    return FORMAT.load(path, _check, _restored)


def _stored(compensated: CompensatedScene, half: bool) -> dict[str, Tensor]:
    state = {_HEAD + name: tensor for name, tensor in compensated.head.state_dict().items()}
    kind = torch.float16 if half else torch.float32
    return {
        name: tensor.detach().cpu().to(torch.float32 if name == "means" else kind).contiguous()
        for name, tensor in {**compensated.tensors(), **state}.items()
    }


def _restored(header: dict[str, Any], tensors: dict[str, Tensor]) -> CompensatedScene:
    missing = {*_SCENE, FEATURES} - tensors.keys()
    if missing:
        raise ValueError(f"tensor {min(missing)!r} is missing")
    for name, tensor in tensors.items():
        if tensor.dtype not in _KINDS:
            raise ValueError(f"tensor {name!r} must be float32 or float16, got {tensor.dtype}")
        _check_finite(name, tensor)
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    if len(floats["means"].shape) != 2 or len(floats["means"]) != header["gaussians"]:
        raise ValueError(f"{header['gaussians']} Gaussians, but means are {tuple(floats['means'].shape)}")
    scene = SplatScene(**{name: floats.pop(name) for name in _SCENE}, antialiased=header["antialiased"])
    features = floats.pop(FEATURES)
    return CompensatedScene(scene, features, _head(header, floats))


def _head(header: dict[str, Any], state: dict[str, Tensor]) -> CompensationHead:
    """The head of a header; nothing is allocated for it that the file does not hold."""
    kind = next((head for head in HEADS if head.name == header["head"]), None)
    if kind is None:
        raise ValueError(f"head {header['head']!r}; known are {[head.name for head in HEADS]}")
    with torch.device("meta"):
        head = kind.built(header["settings"])
    wanted = {_HEAD + name: tensor.shape for name, tensor in head.state_dict().items()}
    for name in sorted(wanted.keys() | state.keys()):
        got = state[name].shape if name in state else None
        if name not in wanted or got != wanted[name]:
            expected = tuple(wanted[name]) if name in wanted else "absent"
            raise ValueError(f"tensor {name!r} must be {expected}, got {None if got is None else tuple(got)}")
    head.load_state_dict({name.removeprefix(_HEAD): tensor for name, tensor in state.items()}, assign=True)
    return head.requires_grad_(True)


def _check_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"tensor {name!r} holds NaN or infinite numbers, or what float16 does not hold")


def _check(header: dict[str, Any]) -> None:
    """The header's fields have the types that they should have."""
    for name, kind in (("gaussians", int), ("antialiased", bool), ("head", str), ("settings", dict)):
        if not isinstance(header.get(name), kind):
            raise ValueError(f"field {name!r} must be a {kind.__name__}, got {header.get(name)!r}")
    if not all(type(value) is int for value in header["settings"].values()):
        raise ValueError(f"settings must be whole numbers by name, got {header['settings']}")
