"""Clean latents with their conditions as a file, so that a run that was stopped does not gather them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffusion.data import Samples
from diffusion.prompting import Rows
from secateur.stages import StageKind
from secateur.tensor_files import TensorFormat


def _flat(samples: Samples) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by their path, and what is none: shared arguments that are None, and whether there is a "no prompt"."""
    shared = dict(samples.shared or {})
    rows = {"conditions": samples.conditions, "null": samples.null or {}, "shared": shared}
    plain = {name: value for name, value in shared.items() if not _holds_tensors(value)}
    others = {"null": samples.null is not None, "shared": plain, "texts": samples.texts}
    return {"latents": samples.latents, **_tensors(rows, "")}, others


def _tensors(rows: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in rows.items():
        if isinstance(value, Mapping):
            found |= _tensors(value, f"{prefix}{name}/")
        elif isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
    return found


def _holds_tensors(value: Any) -> bool:
    return any(map(_holds_tensors, value.values())) if isinstance(value, Mapping) else isinstance(value, Tensor)


def _restored(tensors: Mapping[str, Tensor], others: Mapping[str, Any]) -> Samples:
    tree: dict[str, Any] = {"conditions": {}, "null": {}, "shared": dict(others["shared"])}
    for name, tensor in tensors.items():
        *folders, last = name.split("/")
        place: Rows = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = tensor
    texts = None if others["texts"] is None else tuple(others["texts"])
    null = tree["null"] if others["null"] else None
    return Samples(tree["latents"], tree["conditions"], null, tree["shared"], texts)


SAMPLES: StageKind[Samples] = StageKind(TensorFormat("secateur diffusion samples", 1, article=""), _flat, _restored)
