"""What a network costs to hold and to run once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.console import Report, silent
from secateur.metrics.memory import PeakMemory, measure_peak_memory
from secateur.metrics.speed import Speed
from secateur.metrics.timing_turn import timing_turn
from secateur.surgery.cost import count_bytes, count_macs, count_params, evaluating, measure_latency, run_example


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """What a network costs.

    Args:
        params: number of parameters, shared ones once.
        bytes: of parameters and buffers.
        macs: multiply-adds of one forward of the example inputs, attention included.
        batch_size: examples in that forward.
        latency: the time of that forward.
        peak_memory: what that forward holds at most, besides the weights.
    """

    params: int
    bytes: int
    macs: int
    batch_size: int
    latency: Speed
    peak_memory: PeakMemory


def measure_networks(
    networks: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    repeats: int = 5,
    threads: int | None = None,
    report: Report = silent,
) -> dict[str, NetworkCost]:
    """Count and time networks by name, in evaluation mode and without gradients.

    They take turns with timing, so that other work on the machine hits all of them.

    Args:
        networks: on the device that is measured.
        example_inputs: a tensor, a tuple of arguments, or a dict of them by name; the first tensor has a row an
            example.
        repeats: timed forwards of each, each after one warm-up.
        threads: that torch may use; None: as many as it uses now.
        report: told how far it is.

    Raises:
        ValueError: there is no tensor among the inputs, or `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    with timing_turn():
        costs = {name: _measured(network, example_inputs, threads) for name, network in networks.items()}
        times = {name: list(cost.latency.times_ms) for name, cost in costs.items()}
        for done in range(1, repeats):
            report(done / repeats, "timing")
            for name, network in networks.items():
                times[name] += measure_latency(network, example_inputs, repeats=1, threads=threads).times_ms
    return {name: replace(cost, latency=cost.latency.with_times(times[name])) for name, cost in costs.items()}


def _measured(network: nn.Module, example_inputs: Any, threads: int | None) -> NetworkCost:
    """Timed once."""
    tensors = [leaf for leaf in tree_leaves(_plain(example_inputs)) if isinstance(leaf, Tensor) and leaf.ndim]
    if not tensors:
        raise ValueError("example_inputs hold no tensor with a row an example")
    with evaluating(network), torch.no_grad():
        peak = measure_peak_memory(lambda: run_example(network, example_inputs), tensors[0].device)
    return NetworkCost(
        count_params(network),
        count_bytes(network),
        count_macs(network, example_inputs),
        len(tensors[0]),
        measure_latency(network, example_inputs, repeats=1, threads=threads),
        peak,
    )


def _plain(inputs: Any) -> Any:
    return dict(inputs) if isinstance(inputs, Mapping) else inputs
