from typing import get_args

import numpy as np
import pytest
import torch
from scipy.stats import norm

from secateur.metrics.distribution import mean_interval, paired_interval
from secateur.metrics.distribution.bootstrap import Method

METHODS = get_args(Method)


@pytest.mark.parametrize("method", METHODS)
def test_a_large_normal_sample_has_the_interval_of_its_standard_error(method: Method) -> None:
    values = np.random.default_rng(0).normal(3, 2, 2000)
    interval = mean_interval(values.tolist(), method=method)
    reach = norm.ppf(0.975) * values.std(ddof=1) / 2000**0.5
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert interval.high == pytest.approx(values.mean() + reach, abs=0.1 * reach)
    assert (interval.count, interval.confidence) == (2000, 0.95)


@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_the_true_mean_about_as_often_as_they_say(method: Method) -> None:
    draws = np.random.default_rng(1).exponential(1.0, (120, 40))
    held = [
        interval.low <= 1.0 <= interval.high
        for interval in (mean_interval(row.tolist(), confidence=0.9, resamples=200, method=method) for row in draws)
    ]
    assert 0.78 <= np.mean(held) <= 0.97


def test_the_same_seed_gives_the_same_interval() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)
    assert mean_interval(values, confidence=0.5).high < mean_interval(values, confidence=0.99).high


def test_equal_values_have_no_width() -> None:
    interval = mean_interval([2.5] * 7)
    assert (interval.low, interval.mean, interval.high) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize(
    "values",
    [[0.3] * 5 + [0.1 + 0.2], [1e-300, 2e-300, 3e-300], [1e300, 2e300, -1e300], [0.0] * 19 + [1.0], [1.0, 2.0]],
)
def test_intervals_of_awkward_values_hold_the_mean(values: list[float]) -> None:
    interval = mean_interval(values)
    assert min(values) <= interval.low <= interval.mean <= interval.high <= max(values)


def test_pairs_tell_apart_what_single_values_cannot() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = 30 + 5 * torch.randn(40, generator=generator, dtype=torch.float64)
    candidate = reference - 0.5 + 0.1 * torch.randn(40, generator=generator, dtype=torch.float64)
    assert paired_interval(candidate, reference).high < 0
    assert mean_interval(candidate).high > mean_interval(reference).low


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 values"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        mean_interval([1.0, float("nan"), 2.0])
    with pytest.raises(ValueError, match="confidence must be between"):
        mean_interval([1.0, 2.0], confidence=1.0)
    with pytest.raises(ValueError, match="as many values of each"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])
