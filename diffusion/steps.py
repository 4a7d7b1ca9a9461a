"""Which step of a trajectory a denoiser is called for, told by the time steps that it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class StepCounter:
    """Counts the steps of a trajectory, whatever pipeline calls the denoiser.

    A new time step is a new step; the same one again is a further call of that step (classifier-free guidance without a
    joint batch, or a two-stage sampler); a larger one begins a new trajectory.

    Attributes:
        step: steps since the trajectory began, from 0.
        call: calls at this step, from 0.
    """

    def __init__(self) -> None:
        self.step = -1
        self.call = 0
        self._timestep: float | None = None

    def advance(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take note of a call of the denoiser.

        Raises:
            ValueError: the call gives no time step, which is the second argument, or `timestep`.
        """
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        if timestep is None:
            raise ValueError("the denoiser was called without a timestep, so no one can tell which step it is")
        value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        if value == self._timestep:
            self.call += 1
            return
        begins = self._timestep is None or value > self._timestep
        self.step = 0 if begins else self.step + 1
        self.call = 0
        self._timestep = value


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While the context is open, `module` runs `forward`, within the hooks and masks that it has."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
