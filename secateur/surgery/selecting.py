"""Layers that read some of the channels that come in, or write some of those that go out, each its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """Some channels of a tensor.

    Args:
        dim: the tensor's dimension that holds them, counted from its end: -1 to -4.
        width: how many channels there are.
        rows: (kept,) ascending: those that are read, or written.
    """

    dim: int
    width: int
    rows: Int64[Tensor, " kept"]

    @property
    def contiguous(self) -> bool:
        """Whether they lie side by side, so that a view reads them."""
        return len(self.rows) > 0 and int(self.rows[-1]) - int(self.rows[0]) + 1 == len(self.rows)


class Selecting:
    """Marks the class that a module has while it reads or writes some channels alone."""


class Gathers(Selecting):
    """Reads its channels of what comes in: a view where they lie side by side, a copy otherwise."""

    gathers: tuple[int, int, int]
    gathered_rows: Tensor | None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the layer makes of the channels that it reads."""
        dim, start, length = self.gathers
        mine = x.narrow(dim, start, length) if self.gathered_rows is None else x.index_select(dim, self.gathered_rows)
        return super().forward(mine, *args, **kwargs)  # type: ignore[misc]


class Scatters(Selecting):
    """Writes its channels among zeros: a branch that adds to some channels of a wider stream."""

    scatters: tuple[int, int]
    scattered_rows: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's output in its places, 0 elsewhere."""
        output: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
        dim, width = self.scatters
        shape = list(output.shape)
        shape[dim] = width
        return output.new_zeros(shape).index_add(dim, self.scattered_rows, output)


def gather(module: nn.Module, channels: Channels) -> None:
    """Make the module read these channels only. Its own weights have to be those of them."""
    rows = None if channels.contiguous else channels.rows.to(_device(module))
    _become(module, Gathers)
    module.gathers = (channels.dim, int(channels.rows[0]), len(channels.rows))  # type: ignore[assignment]
    module.register_buffer("gathered_rows", rows)


def scatter(module: nn.Module, channels: Channels) -> None:
    """Make the module's output stand for these channels of a wider one."""
    _become(module, Scatters)
    module.scatters = (channels.dim, channels.width)  # type: ignore[assignment]
    module.register_buffer("scattered_rows", channels.rows.to(_device(module)))


def count_gathers(module: nn.Module) -> int:
    """Layers that copy the channels that they read, because these do not lie side by side."""
    return sum(isinstance(child, Gathers) and child.gathered_rows is not None for child in module.modules())


def plain_kind(kind: type) -> type:
    """The class that a module had before it read or wrote some channels alone."""
    while issubclass(kind, Selecting):
        kind = kind.__bases__[1]
    return kind


def _become(module: nn.Module, how: type[Selecting]) -> None:
    kind = type(module)
    module.__class__ = type(f"{how.__name__}{kind.__name__}", (how, kind), {})


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
