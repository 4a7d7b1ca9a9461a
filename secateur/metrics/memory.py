"""The most memory that a call holds at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The most bytes that a call held at a time, beyond what was there before it.

    Args:
        bytes: how many.
        counted: what they are: those of "tensors" that torch's operations returned (on a CPU: the same on every
            machine, without the workspace inside an operation), or those of CUDA's "allocator".
    """

    bytes: int
    counted: Literal["tensors", "allocator"]


def measure_peak_memory(call: Callable[[], object], device: torch.device) -> PeakMemory:
    """The peak of one call, whose tensors lie on `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return PeakMemory(torch.cuda.max_memory_allocated(device) - before, "allocator")
    with _LiveTensors().watching() as live:
        call()
    return PeakMemory(live.peak, "tensors")


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages that operations make while the context is open, and takes them off when they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, weakref.ref[Any]] = {}
        self.bytes = self.peak = 0

    @contextmanager
    def watching(self) -> Iterator[_LiveTensors]:
        with self:
            yield self
        self.held.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            if id(storage) not in self.held and id(storage) not in given:
                self._hold(storage)
        return output

    def _hold(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()

        def freed(_: Any) -> None:
            if self.held.pop(key, None) is not None:
                self.bytes -= size

        self.held[key] = weakref.ref(storage, freed)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
