"""What a run of LD-Pruner has measured so far, in a file: hours of sampling outlive an interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.files import replacing_file

_VALUES = 256


@dataclass
class ShiftRecord:
    """Both norms of the units that have been measured.

    Args:
        path: of the file; None keeps nothing.
        latents: some values of the whole model's latents, which tell model, seeds and sampler.
        norms: unit -> norms of the shift of the mean, and of the standard deviation.
    """

    path: Path | None
    latents: list[float]
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def open(
        cls, path: Path | None, latents: Float[Tensor, "seeds ..."], units: Sequence[str] | None = None
    ) -> ShiftRecord:
        """The record in that file, or a new one where there is no file.

        Args:
            path: of the file.
            latents: of the whole model.
            units: all that will be measured; None: that depends on what is measured.

        Raises:
            ValueError: the file is no record, or one of other latents or units.
        """
        values = latents.flatten().cpu()
        values = values[torch.linspace(0, len(values) - 1, min(len(values), _VALUES)).long()]
        record = cls(path, values.tolist())
        if path is None or not path.exists():
            return record
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            record.norms = {unit: (float(mean), float(std)) for unit, (mean, std) in saved["norms"].items()}
            before = torch.tensor(saved["latents"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no record of latent shifts: {error!r}") from error
        # Not bit for bit: some kernels of GPUs sum in another order each time.
        near = before.shape == values.shape and torch.allclose(before, values, rtol=0, atol=0.01 * float(values.std()))
        if not near or (units is not None and not set(record.norms) <= set(units)):
            raise ValueError(f"{path} is a record of another model, calibration or unit map; remove it to start anew")
        return record

    def add(self, unit: str, norms: tuple[float, float]) -> None:
        """Note the norms of a unit, and write the file."""
        self.norms[unit] = norms
        if self.path is not None:
            with replacing_file(self.path) as path:
                path.write_text(json.dumps({"latents": self.latents, "norms": self.norms}, indent=1), encoding="utf-8")
