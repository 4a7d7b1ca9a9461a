"""What a run has finished: each stage's result as a file that knows what it was made from, so that none is repeated."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.data import Samples
from diffusion.prompting import Rows
from secateur.tensor_files import TensorFormat
from secateur.units import Scores

_SCORES = TensorFormat("secateur scores", 1, article="")
_SAMPLES = TensorFormat("secateur diffusion samples", 1, article="")
_NAME = "stages"


@dataclass(frozen=True)
class Stages:
    """The folder of a run's stages.

    Args:
        folder: `stages` within the folder of the result.
        identities: stage -> what it depends on, as plain values.
    """

    folder: Path
    identities: Mapping[str, Any]

    @classmethod
    def within(cls, output: Path, identities: Mapping[str, Any]) -> Stages:
        """The stages of the run whose result goes into `output`."""
        return cls(output / _NAME, identities)

    def identity(self, stage: str) -> str:
        """A hash of what the stage depends on."""
        text = json.dumps(self.identities[stage], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def checkpoint(self, stage: str) -> Path:
        """Where a fit keeps what it has done so far; one of another identity is never found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{stage}-{self.identity(stage)[:12]}.ckpt"

    def scores(self, make: Callable[[], Scores]) -> Scores:
        """The scores of the run, made once."""
        return self._kept("scores", _SCORES, make, dict, lambda _, tensors: tensors)

    def samples(self, make: Callable[[], Samples]) -> Samples:
        """The clean latents of the run, made once."""
        return self._kept("samples", _SAMPLES, make, _flat, lambda fields, tensors: _restored(fields, tensors))

    def clear(self) -> None:
        """Remove what only a run that was cut short needs; the scores stay."""
        for entry in self.folder.glob("*"):
            if entry.name != "scores.safetensors":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _kept(self, stage: str, kind: TensorFormat, make: Callable[[], Any], flat: Any, restore: Any) -> Any:
        path, identity = self.folder / f"{stage}.safetensors", self.identity(stage)
        if path.is_file():
            found = kind.load(path, lambda fields: None, lambda fields, tensors: (fields, tensors))
            if found[0].get("identity") == identity:
                return restore(*found)
        made = make()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in flat(made).items()}
        kind.save(path, tensors, {"identity": identity, "others": _plain_of(made)})
        return made


def _flat(samples: Samples) -> dict[str, Tensor]:
    rows = {"conditions": samples.conditions, "null": samples.null or {}, "shared": dict(samples.shared or {})}
    return {"latents": samples.latents, **_tensors(rows, "")}


def _tensors(rows: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in rows.items():
        if isinstance(value, Mapping):
            found |= _tensors(value, f"{prefix}{name}/")
        elif isinstance(value, Tensor):
            # A row that stands for many shares its memory, which safetensors refuses.
            found[f"{prefix}{name}"] = value.clone()
    return found


def _plain_of(made: Any) -> dict[str, Any]:
    """What of samples is no tensor: shared arguments that are None, and whether there is a "no prompt"."""
    if not isinstance(made, Samples):
        return {}
    shared = made.shared or {}
    return {"null": made.null is not None, "shared": {n: v for n, v in shared.items() if not _holds_tensors(v)}}


def _holds_tensors(value: Any) -> bool:
    return any(map(_holds_tensors, value.values())) if isinstance(value, Mapping) else isinstance(value, Tensor)


def _restored(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Samples:
    tree: dict[str, Any] = {"conditions": {}, "null": {}, "shared": dict(fields["others"]["shared"])}
    for name, tensor in tensors.items():
        *folders, last = name.split("/")
        place: Rows = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = tensor
    null = tree["null"] if fields["others"]["null"] else None
    return Samples(tree["latents"], tree["conditions"], null, tree["shared"])


def same_device(scores: Scores) -> Scores:
    """Scores on the CPU, where units are chosen."""
    return {name: score.detach().to("cpu", torch.float64) for name, score in scores.items()}
