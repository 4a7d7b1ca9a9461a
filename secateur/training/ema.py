"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from secateur.training.steps import steps_after


class Ema(lightning.Callback):
    """Averages the trainable parameters in (at least) float32 after each step.

    The decay warms up: step t from 0 decays by min(decay, (1 + t) / (10 + t)), as in TensorFlow's
    ExponentialMovingAverage. A parameter that is seen first or whose shape has changed starts anew from its value.
    Buffers are not averaged. (Lightning's and torch's own averages copy the whole module, and fix its shapes.)

    Args:
        decay: in [0, 1); the closer to 1, the longer the memory.

    Raises:
        ValueError: `decay` is out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the parameters as they are after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.averages = {
            name: self._averaged(name, parameter, decay)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.updates += 1

    def _averaged(self, name: str, parameter: Tensor, decay: float) -> Tensor:
        value = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
        average = self.averages.get(name)
        if average is None or average.shape != value.shape:
            return value.clone()
        return average.to(value.device).lerp_(value, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Replace the module's parameters by their averages, where there is one of the same shape."""
        for name, parameter in module.named_parameters():
            average = self.averages.get(name)
            if average is not None and average.shape == parameter.shape:
                parameter.copy_(average)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """While the context is open the parameters are the averages; afterwards they are what they were, exactly."""
        before = {
            name: parameter.detach().clone() for name, parameter in module.named_parameters() if name in self.averages
        }
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    if name in before:
                        parameter.copy_(before[name])

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if steps_after(trainer, batch_idx) is not None:
            self.update(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.averages = dict(state_dict["averages"])
