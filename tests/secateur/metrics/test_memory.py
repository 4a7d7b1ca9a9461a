import pytest
import torch
from torch import nn

from secateur.metrics.memory import measure_peak_memory

CPU = torch.device("cpu")
ROW = torch.zeros(10, 100)
BYTES = 4000


def chain(length: int) -> object:
    held = ROW
    for _ in range(length):
        held = held * 2
    return held


def test_one_tensor() -> None:
    peak = measure_peak_memory(lambda: ROW * 2, CPU)
    assert (peak.bytes, peak.counted) == (BYTES, "tensors")


@pytest.mark.parametrize("length", [2, 5, 50])
def test_what_is_freed_counts_no_more(length: int) -> None:
    assert measure_peak_memory(lambda: chain(length), CPU).bytes == 2 * BYTES


def test_views_and_changes_in_place_take_nothing() -> None:
    assert measure_peak_memory(lambda: ROW.clone().add_(1).view(-1)[5:], CPU).bytes == BYTES
    assert measure_peak_memory(lambda: ROW.view(-1), CPU).bytes == 0


def test_activations_that_a_gradient_needs_are_held() -> None:
    network = nn.Sequential(*[nn.Linear(100, 100) for _ in range(5)])
    assert measure_peak_memory(lambda: network(ROW), CPU).bytes == 5 * BYTES
    with torch.no_grad():
        assert measure_peak_memory(lambda: network(ROW), CPU).bytes == 2 * BYTES


@pytest.mark.gpu
def test_the_allocator_of_a_gpu_is_asked() -> None:
    device = torch.device("cuda")
    row = ROW.to(device)
    peak = measure_peak_memory(lambda: row * 2, device)
    assert peak.counted == "allocator"
    assert peak.bytes >= BYTES
