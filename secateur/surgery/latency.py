"""The milliseconds that each unit of a network takes: the measured time of the modules, shared out over their units."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.metrics.speed import pinned_threads
from secateur.surgery.cost import evaluating, run_example
from secateur.surgery.layers import split_name
from secateur.surgery.network import Network
from secateur.surgery.stand_in import gone_with


@dataclass(frozen=True, eq=False)
class UnitTimes:
    """Milliseconds of a forward.

    Args:
        whole: of the whole network.
        units: group name -> (size,) float64, what the forward loses with each unit: the cost "ms" of a budget.
    """

    whole: float
    units: Mapping[str, Float[Tensor, " size"]]


def unit_times(network: Network, example_inputs: Any, *, repeats: int = 5, threads: int | None = None) -> UnitTimes:
    """Milliseconds that a forward takes, and loses with each unit.

    A module's own time, without that of the modules in it, is shared out over the rows of its largest weight that the
    units own; the own time of a module that counts units (an attention's softmax) goes to these; a whole module takes
    all its time along. Times of small layers do not shrink as their widths do, so that a cut model is a little slower
    than the sum tells: measure it.

    Args:
        network: on the device that is measured.
        example_inputs: as for `Network`.
        repeats: timed forwards, of which the median counts.
        threads: that torch may use; None: as many as it uses now.
    """
    own = module_times(network.module, example_inputs, repeats=repeats, threads=threads)
    return UnitTimes(sum(own.values()), {group.name: _times_of(network, group.name, own) for group in network.groups()})


def module_times(
    module: nn.Module, example_inputs: Any, *, repeats: int = 5, threads: int | None = None
) -> dict[str, float]:
    """Module name -> median milliseconds of a forward that are spent in it and in no module within it."""
    runs: list[dict[str, float]] = []
    with evaluating(module), torch.no_grad(), pinned_threads(threads):
        for _ in range(repeats + 1):
            with _Stopwatch(module).running() as spent:
                run_example(module, example_inputs)
            runs.append(spent)
    names = runs[-1]
    return {name: statistics.median(run.get(name, 0.0) for run in runs[1:]) for name in names}


def _times_of(network: Network, name: str, own: Mapping[str, float]) -> Float[Tensor, " size"]:
    group = next(group for group in network.groups() if group.name == name)
    blocks = network.blocks.get(name)
    if blocks is not None:
        each = [sum(time for module, time in own.items() if gone_with(f"{module}.", {"": block})) for block in blocks]
        return torch.tensor(each, dtype=torch.float64)
    shares: dict[str, float] = {}
    for member in group.members:
        layer, _ = split_name(member.param)
        tensor = network.module.get_submodule(layer)._parameters.get(split_name(member.param)[1])
        if tensor is None or tensor.dim() < 2:
            continue
        rows = group.size if member.rows is None else member.rows.numel()
        shares[layer] = max(shares.get(layer, 0.0), rows / tensor.shape[member.dim])
    counting = {count.module for count in network.counts if count.group == name}
    shares |= {module: 1.0 for module in counting if module not in shares}
    total = sum(own.get(module, 0.0) * share for module, share in shares.items())
    return torch.full((group.size,), total / group.size, dtype=torch.float64)


class _Stopwatch:
    """Times every call of every module, and takes the calls within off."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.spent: dict[str, float] = {}
        self.started: list[float] = []
        self.within: list[float] = [0.0]
        self.cuda = next(module.parameters()).is_cuda

    @contextmanager
    def running(self) -> Iterator[dict[str, float]]:
        with ExitStack() as stack:
            for name, child in self.module.named_modules():
                before = child.register_forward_pre_hook(lambda *_: self._enter())
                after = child.register_forward_hook(lambda *_, name=name: self._leave(name), always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield self.spent

    def _enter(self) -> None:
        self.started.append(self._now())
        self.within.append(0.0)

    def _leave(self, name: str) -> None:
        whole = self._now() - self.started.pop()
        own = whole - self.within.pop()
        self.within[-1] += whole
        self.spent[name] = self.spent.get(name, 0.0) + own

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() * 1000.0
