"""Rows of parameters that come and go while Adam trains them, and what training sees of the Gaussians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from compress3d.cameras import Cameras
from compress3d.splats.anchors.field import NeuralGaussians

PAPER_STEPS = 30_000
"""Steps of a run in the papers, which their schedules are made for."""


@dataclass(frozen=True, slots=True)
class GrowthSchedule:
    """When a field grows and is pruned; the defaults are those of Scaffold-GS's released code for 30,000 steps.

    Args:
        observe_from: the first step whose gradients count.
        start: the first step after which the field may change.
        stop: the step after which it stays.
        every: steps between changes.

    Raises:
        ValueError: the numbers are out of order.
    """

    observe_from: int = 500
    start: int = 1500
    stop: int = 15_000
    every: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.observe_from <= self.start <= self.stop or self.every < 1:
            raise ValueError(f"a schedule needs 0 <= observe_from <= start <= stop and every >= 1, got {self}")

    @classmethod
    def scaled(cls, steps: int, every: int = 100) -> Self:
        """The same shares of a run of another length."""
        share = steps / PAPER_STEPS
        default = cls()
        first, start, stop = (round(share * step) for step in (default.observe_from, default.start, default.stop))
        return cls(first, start, stop, every)

    def observes(self, step: int) -> bool:
        """Whether the gradients of step `step` (from 0) count."""
        return self.observe_from <= step < self.stop

    def due(self, done: int) -> bool:
        """Whether the field changes after `done` steps."""
        return self.start <= done <= self.stop and done > self.observe_from and done % self.every == 0


class Grower(Protocol):
    """How a field grows and is pruned while it is trained."""

    schedule: GrowthSchedule

    def observe(self, camera: Cameras, units: Tensor, gaussians: NeuralGaussians, meta: dict[str, Any]) -> None:
        """Take note of what one camera saw, after the backward pass, when `meta["means2d"]` has its gradient."""
        ...

    def update(self, optimizer: Optimizer, step: int) -> None:
        """Grow and prune the field, its optimiser's state with it."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What has been seen since the last update."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        ...


class Sightings:
    """How often each Gaussian of a field was drawn, and how hard its image position was pulled.

    Args:
        slots: Gaussians of the field.
    """

    def __init__(self, slots: int) -> None:
        self.pulls = torch.zeros(slots)
        self.visits = torch.zeros(slots)

    def add(self, camera: Cameras, gaussians: NeuralGaussians, meta: dict[str, Any]) -> None:
        """Add one view: the norm of the gradient by the place in the image, in units of half its width and height."""
        drawn = (meta["radii"][0] > 0).all(dim=-1)
        gradient = meta["means2d"].grad
        if gradient is None:
            return
        half = gradient.new_tensor([camera.width / 2, camera.height / 2])
        pulls = torch.linalg.vector_norm(gradient[0] * half, dim=-1)
        slots = gaussians.slots[drawn]
        self.pulls.index_add_(0, slots, pulls[drawn])
        self.visits.index_add_(0, slots, torch.ones_like(pulls[drawn]))

    def means(self) -> Float[Tensor, " S"]:
        """Mean pull of each Gaussian over the views that drew it; 0 where none did."""
        return self.pulls / self.visits.clamp_min(1)

    def change(self, kept: Int64[Tensor, " K"], added: int) -> None:
        """Keep those at `kept` and append `added` that were never seen."""
        self.pulls = torch.cat([self.pulls[kept], self.pulls.new_zeros(added)])
        self.visits = torch.cat([self.visits[kept], self.visits.new_zeros(added)])

    def forget(self, which: Tensor) -> None:
        """Start anew for those at `which` ((S,) bool)."""
        self.pulls[which] = 0
        self.visits[which] = 0


def change_rows(
    optimizer: Optimizer, module: nn.Module, name: str, kept: Int64[Tensor, " K"], added: Float[Tensor, "A ..."]
) -> None:
    """Make a parameter of a module its rows at `kept`, then `added`; Adam's moments go along, those of new rows are 0.

    The parameter becomes another object: graphs that hold the old one stay as they are.
    """
    old = module.get_parameter(name)
    new = nn.Parameter(torch.cat([old.detach()[kept], added.to(old)]))
    setattr(module, name, new)
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        moments = {
            key: torch.cat([value[kept], torch.zeros_like(added, dtype=value.dtype)])
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == old.shape
        }
        optimizer.state[new] = {**state, **moments}
