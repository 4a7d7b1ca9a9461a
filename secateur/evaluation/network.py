"""What a network costs, as measurements."""

from __future__ import annotations

from typing import Any

from secateur.evaluation.measurements import counted, timed, timing_details
from secateur.evaluation.record import Measurement, Noise
from secateur.metrics.network import NetworkCost


def network_costs(cost: NetworkCost, one: str) -> dict[str, Measurement]:
    """Parameters, multiply-adds of one example, bytes, latency of a batch and peak memory.

    The memory of torch's tensors is counted, and the same each time; that of CUDA's allocator need not be.

    Args:
        cost: of the network.
        one: what an example is called: "image", "sample".
    """
    batch = f"batch of {cost.batch_size}"
    counts = cost.peak_memory.counted == "tensors"
    memory = float(cost.peak_memory.bytes)
    return {
        "params": counted(cost.params, "", "parameters"),
        "macs": counted(cost.macs / cost.batch_size, "", f"multiply-adds, one {one}"),
        "size": counted(cost.bytes, "bytes", "size"),
        "latency": timed(cost.latency, f"latency, {batch}"),
        "peak_memory": Measurement(
            memory, "bytes", "lower", f"peak memory, {batch}", noise=Noise("counted", 0.0) if counts else None
        ),
    }


def network_details(cost: NetworkCost) -> dict[str, Any]:
    """How they were measured, for a subject's details."""
    return {
        "batch_size": cost.batch_size,
        "latency": timing_details(cost.latency),
        "peak_memory_is_of": cost.peak_memory.counted,
    }
