"""Numbers as measurements, and in words."""

import math

import numpy as np
import pytest
from scipy import stats

from secateur.evaluation.measurements import averaged, counted, mean_of, rate, standard_error, timed
from secateur.evaluation.record import Noise
from secateur.evaluation.wording import say, say_value, say_with_noise
from secateur.metrics.speed import Speed, measure_speed

VALUES = np.random.default_rng(0).normal(30, 2, 40)


def test_means_are_as_sure_as_their_samples() -> None:
    found = averaged(VALUES.tolist(), "dB", "PSNR", "higher", reference=(VALUES - 0.5).tolist())
    assert found.value == pytest.approx(VALUES.mean()) and found.samples == 40
    assert found.noise is not None and found.noise.value == pytest.approx(stats.sem(VALUES))
    assert found.interval is not None and found.interval.low < found.value < found.interval.high
    assert found.change is not None and found.change.mean == pytest.approx(0.5)
    assert found == averaged(VALUES.tolist(), "dB", "PSNR", "higher", reference=(VALUES - 0.5).tolist())


def test_many_samples_have_the_same_interval_as_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(0, 1, 3000)
    found = averaged(values.tolist(), "", "it", "neither").interval
    assert found is not None
    low, high = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)


def test_right_answers_have_the_interval_of_a_binomial() -> None:
    right = [1.0] * 900 + [0.0] * 600
    found = averaged(right, "share", "accuracy", "higher").interval
    assert found is not None
    spread = 1.96 * math.sqrt(0.6 * 0.4 / 1500)
    assert (found.low, found.high) == pytest.approx((0.6 - spread, 0.6 + spread), abs=0.003)


@pytest.mark.parametrize("values", [[math.inf, 30.0], [math.nan, 30.0], [30.0]])
def test_what_is_not_finite_or_alone_has_no_noise(values: list[float]) -> None:
    found = averaged(values, "dB", "PSNR", "higher", reference=values)
    assert found.noise is found.interval is found.change is None
    assert found.infinite == (math.inf in values) and (found.value is None) == (len(values) > 1)
    assert standard_error(values) is None


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="PSNR: a mean needs at least one value"):
        averaged([], "dB", "PSNR", "higher")


def test_times_keep_their_repeats() -> None:
    speed = Speed.of([4.0, 2.0, 5.0], frames=1, threads=1, load_average=None, first_call_ms=90.0, clock="host")
    time, rates = timed(speed, "a frame"), rate(speed.times_ms, "frames/s", batch=2)
    assert (time.value, time.unit, time.better) == (4.0, "ms", "lower")
    assert time.noise == Noise("repeats", pytest.approx(np.std([4, 2, 5], ddof=1)), (4.0, 2.0, 5.0))
    assert (rates.value, rates.unit, rates.better) == (500.0, "1/s", "higher")
    assert rates.noise is not None and rates.noise.repeats == (500.0, 1000.0, 400.0)
    assert rate(speed.times_ms, "fastest", value=1000.0).value == 1000.0
    measured = measure_speed(lambda _: None, frames=2, repeats=3)
    assert timed(measured, "nothing").samples == 3 == len(measured.times_ms)


@pytest.mark.parametrize(
    ("measurement", "text"),
    [
        (counted(4_700_000, "bytes", "size"), "4.7 MB"),
        (counted(38_893, "", "Gaussians"), "38,893"),
        (mean_of(35.204, "dB", "PSNR", "higher"), "35.20 dB"),
        (mean_of(math.inf, "dB", "PSNR", "higher"), "identical"),
        (mean_of(math.nan, "dB", "PSNR", "higher"), "undefined"),
        (mean_of(0.93414, "share", "accuracy", "higher"), "93.41 %"),
        (mean_of(0.0123456, "", "error", "lower"), "0.01235"),
        (mean_of(12.3456, "ms", "time", "lower"), "12.35 ms"),
        (mean_of(1234567.0, "1/s", "rate", "higher"), "1,234,567"),
    ],
)
def test_numbers_have_words(measurement: object, text: str) -> None:
    assert say(measurement) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("measurement", "text"),
    [
        (mean_of(40.053, "dB", "PSNR", "higher", error=1.804), "40.1 ± 1.8 dB"),
        (mean_of(0.93414, "share", "accuracy", "higher", error=0.0025), "93.41 ± 0.25 %"),
        (mean_of(645.91, "ms", "time", "lower", error=47.3), "646 ± 47 ms"),
        (mean_of(12345.6, "1/s", "rate", "higher", error=12.0), "12,346 ± 12"),
        (mean_of(35.2, "dB", "PSNR", "higher"), "35.20 dB"),
        (counted(3000, "bytes", "size"), "3 kB"),
        (mean_of(math.inf, "dB", "PSNR", "higher", error=1.0), "identical"),
    ],
)
def test_noise_has_two_digits(measurement: object, text: str) -> None:
    assert say_with_noise(measurement) == text  # type: ignore[arg-type]


def test_no_value_is_none() -> None:
    assert say_value(None, "dB") == "none"
