"""Measurements in words: numbers with their units, and how sure they are."""

from __future__ import annotations

import math

from secateur.evaluation.record import Measurement
from secateur.quantities import format_bytes, format_decibels

_UNITS = {"1/s": "", "share": "%"}
"""What is written behind a number, where it is not the unit: labels of rates say what is done in a second."""


def say(measurement: Measurement) -> str:
    """The value for people: "32.10 dB", "4.7 MB", "93.41 %", "12.3 ms"."""
    if measurement.value is None:
        return _not_finite(measurement)
    counted = measurement.noise is not None and measurement.noise.kind == "counted"
    if counted and not measurement.unit and measurement.value.is_integer():
        return f"{measurement.value:,.0f}"
    return say_value(measurement.value, measurement.unit)


def say_value(value: float | None, unit: str) -> str:
    """A number with its unit; "none" where there is no number."""
    if value is None:
        return "none"
    if unit == "bytes":
        return f"-{format_bytes(-value)}" if value < 0 else format_bytes(value)
    if unit == "dB":
        return format_decibels(value)
    if unit == "share":
        return f"{100 * value:.2f} %"
    number = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{number} {_UNITS.get(unit, unit)}".rstrip()


def say_difference(value: float | None, unit: str) -> str:
    """A difference of two values with its unit: those of shares are points."""
    return f"{100 * value:.2f} points" if unit == "share" and value is not None else say_value(value, unit)


def say_with_noise(measurement: Measurement) -> str:
    """The value, and how sure it is to two digits: "40.1 ± 1.8 dB"; as `say` where it is counted, or not known."""
    noise, value, unit = measurement.noise, measurement.value, measurement.unit
    if noise is None or not noise.value or value is None or unit == "bytes":
        return say(measurement)
    scale = 100.0 if unit == "share" else 1.0
    decimals = max(0, 1 - math.floor(math.log10(scale * noise.value)))
    number, error = (f"{scale * one:,.{decimals}f}" for one in (value, noise.value))
    return f"{number} ± {error} {_UNITS.get(unit, unit)}".rstrip()


def _not_finite(measurement: Measurement) -> str:
    if not measurement.infinite:
        return "undefined"
    return "identical" if measurement.unit == "dB" else "infinite"
