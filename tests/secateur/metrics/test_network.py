"""What networks cost: counted as they are, timed in turns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.metrics.network import measure_networks


class Noted(nn.Linear):
    """Writes down that it ran."""

    def __init__(self, name: str, width: int, runs: list[str]) -> None:
        super().__init__(4, width)
        self.name, self.runs = name, runs

    def forward(self, inputs: Tensor) -> Tensor:
        self.runs.append(self.name)
        return super().forward(inputs)


def test_networks_are_counted_and_take_turns() -> None:
    runs: list[str] = []
    networks = {"wide": Noted("wide", 8, runs).train(), "narrow": Noted("narrow", 2, runs)}
    found = measure_networks(networks, torch.zeros(3, 4), repeats=3)
    wide = found["wide"]
    assert (wide.params, wide.bytes, wide.macs, wide.batch_size) == (40, 160, 3 * 4 * 8, 3)
    assert found["narrow"].params == 10 and found["narrow"].macs == 3 * 4 * 2
    assert all(cost.latency.repeats == len(cost.latency.times_ms) == 3 for cost in found.values())
    # Behind the counting, a warm-up and a timed forward each.
    assert runs[-8:] == ["wide", "wide", "narrow", "narrow"] * 2
    assert networks["wide"].training


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no tensor with a row an example"):
        measure_networks({"one": nn.Linear(1, 1)}, {"scale": 1.0})
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        measure_networks({"one": nn.Linear(1, 1)}, torch.zeros(1, 1), repeats=0)
