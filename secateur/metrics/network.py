"""What a network costs to hold and to run once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.metrics.memory import PeakMemory, measure_peak_memory
from secateur.metrics.speed import Speed
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


def measure_network(
    network: nn.Module, example_inputs: Any, *, repeats: int = 5, threads: int | None = None
) -> NetworkCost:
    """Count and time a network in evaluation mode, without gradients.

    Args:
        network: on the device that is measured.
        example_inputs: a tensor, a tuple of arguments, or a dict of them by name; the first tensor has a row an
            example.
        repeats: timed forwards, after one warm-up.
        threads: that torch may use; None: as many as it uses now.

    Raises:
        ValueError: there is no tensor among the inputs.
    """
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
        measure_latency(network, example_inputs, repeats=repeats, threads=threads),
        peak,
    )


def _plain(inputs: Any) -> Any:
    return dict(inputs) if isinstance(inputs, Mapping) else inputs
