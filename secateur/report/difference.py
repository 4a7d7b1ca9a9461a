"""How a measurement differs from the reference's, in a few words, and whether that is more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.evaluation.record import Better, Measurement
from secateur.evaluation.wording import say, say_difference
from secateur.metrics.interval import Interval
from secateur.quantities import format_count
from secateur.report.page import Tone

TIMES = "\N{MULTIPLICATION SIGN}"

_DEVIATIONS = 2.0
"""Standard deviations of a difference that may be noise."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What there is to say below a value.

    Args:
        text: "0.25x", "-0.44 points [-0.70, -0.18]"; empty where there is nothing to compare with.
        words: the same in words, for a place with more room.
        tone: better or worse than the reference, beyond the noise; empty for neither.
    """

    text: str = ""
    words: str = ""
    tone: Tone = ""


def difference(one: Measurement, before: Measurement | None) -> Difference:
    """What `one` is beside the reference's measurement of the same name.

    The paired bootstrap interval where there is one; the ratio of what is counted or timed; else the plain difference.
    Where there is nothing to compare with, the interval of the value itself.
    """
    if one.change is not None:
        text = f"{_signed(one.change.mean, one.unit)} {_bracket(one.change, one.unit)}"
        return Difference(text, text, _tone_of_interval(one.change, one.better))
    if before is None or before.value is None or one.value is None:
        text = "" if one.interval is None else _bracket(one.interval, one.unit)
        return Difference(text, text)
    tone = _tone(one.value - before.value, noise_between(one, before), one.better)
    if is_cost(one) and one.value > 0.0 and before.value > 0.0:
        ratio = one.value / before.value
        quiet = ", within the noise" if ratio != 1.0 and not tone and one.better != "neither" else ""
        return Difference(f"{ratio:.3g}{TIMES}", _ratio_in_words(ratio, one) + quiet, tone)
    text = _signed(one.value - before.value, one.unit)
    return Difference(text, text, tone)


def say_shortly(one: Measurement) -> str:
    """The value for people, large counts in millions."""
    if one.value is not None and not one.unit and is_cost(one) and one.value >= 1e6:
        return format_count(one.value)
    return say(one)


def is_cost(one: Measurement) -> bool:
    """Whether it says what a subject takes, which is counted or timed, rather than how good it is."""
    counted = one.noise is not None and one.noise.kind in ("counted", "repeats")
    return counted or one.unit in ("bytes", "ms", "1/s")


def noise_between(one: Measurement, other: Measurement) -> float | None:
    """How large a difference of two values may be noise; None where that is not known."""
    if one.noise is None or other.noise is None:
        return None
    return _DEVIATIONS * math.hypot(one.noise.value, other.noise.value)


def _signed(value: float, unit: str) -> str:
    sign = "+" if value >= 0.0 else "\N{MINUS SIGN}"
    amount = say_difference(abs(value), unit)
    return sign + amount


def _bracket(interval: Interval, unit: str) -> str:
    factor = 100.0 if unit == "share" else 1.0
    ends = [factor * end for end in (interval.low, interval.high)]
    digits = 2 if unit in ("share", "dB") or max(map(abs, ends)) >= 2.0 else 4
    low, high = (f"{end:.{digits}f}".replace("-", "\N{MINUS SIGN}") for end in ends)
    return f"[{low}, {high}]"


def _ratio_in_words(ratio: float, one: Measurement) -> str:
    if ratio == 1.0:
        return "as before"
    if one.unit == "bytes":
        return f"{1 / ratio:.3g} times smaller" if ratio < 1.0 else f"{ratio:.3g} times as large"
    if one.unit == "ms":
        return f"{1 / ratio:.3g} times as fast"
    if one.unit == "1/s":
        return f"{ratio:.3g} times as many"
    return f"{ratio:.1%} of the reference"


def _tone(change: float, noise: float | None, better: Better) -> Tone:
    if noise is None or better == "neither" or abs(change) <= noise:
        return ""
    return "better" if (change > 0.0) == (better == "higher") else "worse"


def _tone_of_interval(change: Interval, better: Better) -> Tone:
    if better == "neither" or change.low <= 0.0 <= change.high:
        return ""
    return "better" if (change.low > 0.0) == (better == "higher") else "worse"
