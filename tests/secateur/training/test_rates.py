from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from secateur.training import cosine, exponential_decay


def test_exponential_decay_is_geometric() -> None:
    rate = exponential_decay(0.01, 30)
    assert (rate(0), rate(30), rate(99)) == (1.0, pytest.approx(0.01), pytest.approx(0.01))
    assert rate(15) == pytest.approx(0.1)


def test_cosine_warms_up_and_falls() -> None:
    rate = cosine(4, 24, final=0.1)
    assert [rate(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rate(14) == pytest.approx(0.55)
    assert (rate(24), rate(99)) == (pytest.approx(0.1), pytest.approx(0.1))
    falling = [rate(step) for step in range(4, 25)]
    assert falling == sorted(falling, reverse=True)


def test_without_warm_up_cosine_starts_at_the_base_rate() -> None:
    assert cosine(0, 10)(0) == 1.0


def test_a_schedule_s_state_is_plain() -> None:
    schedule = LambdaLR(SGD([torch.zeros(1, requires_grad=True)], lr=1.0), [exponential_decay(0.5, 2)])
    assert schedule.state_dict()["lr_lambdas"] == [None]


@pytest.mark.parametrize(
    "make",
    [lambda: exponential_decay(0, 5), lambda: exponential_decay(0.1, 0), lambda: cosine(5, 5), lambda: cosine(-1, 5)],
)
def test_bad_schedules_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()  # type: ignore[operator]
