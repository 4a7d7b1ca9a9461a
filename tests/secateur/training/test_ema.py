from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.training import Ema
from tests.contracts import assert_same


def constant(value: float, rows: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.full((rows, 3), value, dtype=dtype))
    module.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    module.register_buffer("seen", torch.zeros(()))
    return module


def set_weight(module: nn.Module, value: float, rows: int = 2) -> None:
    module.weight = nn.Parameter(torch.full((rows, 3), value))


def test_the_decay_warms_up() -> None:
    ema, module = Ema(0.2), constant(1.0)
    expected = 1.0
    for step, value in enumerate([1.0, 3.0, -2.0, 5.0]):
        set_weight(module, value)
        ema.update(module)
        decay = min(0.2, (1 + step) / (10 + step))
        expected = value if step == 0 else decay * expected + (1 - decay) * value
    torch.testing.assert_close(ema.averages["weight"], torch.full((2, 3), expected))


def test_a_long_memory_settles() -> None:
    ema, module = Ema(0.9), constant(0.0)
    ema.update(module)
    set_weight(module, 1.0)
    for _ in range(200):
        ema.update(module)
    torch.testing.assert_close(ema.averages["weight"], torch.ones(2, 3))


def test_a_swap_is_undone_exactly() -> None:
    ema, module = Ema(0.9), constant(1 / 3)
    ema.update(module)
    set_weight(module, 2 / 7)
    ema.update(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RuntimeError, match="within"), ema.swapped(module):
        assert_same(module.weight.detach(), ema.averages["weight"])
        raise RuntimeError("within")
    assert_same(before, dict(module.state_dict()))
    assert module.weight.requires_grad


def test_a_parameter_that_changes_its_shape_starts_anew() -> None:
    ema, module = Ema(0.9), constant(1.0)
    ema.update(module)
    set_weight(module, 5.0, rows=4)
    with ema.swapped(module):
        assert_same(module.weight.detach(), torch.full((4, 3), 5.0))
    ema.update(module)
    assert_same(ema.averages["weight"], torch.full((4, 3), 5.0))


def test_only_what_is_trained_is_averaged() -> None:
    ema, module = Ema(0.9), constant(1.0)
    ema.update(module)
    assert set(ema.averages) == {"weight"}


def test_half_precision_is_averaged_in_single() -> None:
    ema, module = Ema(0.999), constant(1.0, dtype=torch.float16)
    ema.update(module)
    assert ema.averages["weight"].dtype == torch.float32
    with ema.swapped(module):
        assert module.weight.dtype == torch.float16


def test_its_state_goes_on() -> None:
    module, whole, first, second = constant(1.0), Ema(0.9), Ema(0.9), Ema(0.9)
    for value in (1.0, 4.0):
        set_weight(module, value)
        whole.update(module)
        first.update(module)
    second.load_state_dict(first.state_dict())
    set_weight(module, -2.0)
    whole.update(module)
    second.update(module)
    assert_same(whole.state_dict(), second.state_dict())
