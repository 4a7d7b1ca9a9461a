"""What is known of the samples of an evaluation that has not ended, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.tensor_files import TensorFormat

SECONDS = 10.0
"""Between one time of writing and the next: what Ctrl-C may cost, beside a batch."""

_FORMAT = TensorFormat("secateur unfinished samples", 1, article="")


@dataclass
class UnfinishedSamples:
    """A file that is replaced now and then while models are sampled.

    Args:
        path: of the file.
        identity: all that the samples depend on, as plain values: weights, seeds, steps, what judges them.
        seconds: between one time of writing and the next.
    """

    path: Path
    identity: Any
    seconds: float = SECONDS
    _written: float = field(default_factory=time.monotonic, init=False)

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """How many samples a former run finished, and what it knew of them; none where it had another identity."""
        try:
            return _FORMAT.load(self.path, self._check, lambda header, tensors: (header["done"], tensors))
        except (FileNotFoundError, ValueError):
            return 0, {}

    def keep(self, done: int, known: Callable[[], Mapping[str, Tensor]]) -> None:
        """Write what is known of the first `done` samples, if it is time to."""
        if time.monotonic() - self._written >= self.seconds:
            _FORMAT.save(self.path, known(), {"identity": self._hash(), "done": done})
            self._written = time.monotonic()

    def _check(self, header: dict[str, Any]) -> None:
        if header.get("identity") != self._hash() or not isinstance(header.get("done"), int):
            raise ValueError("samples of another evaluation")

    def _hash(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True, default=str).encode()).hexdigest()


def numbers(values: list[Any]) -> Tensor:
    """Floats or truth values, as they are."""
    return torch.tensor(values, dtype=torch.float64)
