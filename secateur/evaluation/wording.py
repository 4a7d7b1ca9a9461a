"""Measurements in words: numbers with their units, and how sure they are."""

from __future__ import annotations

from secateur.evaluation.record import Measurement
from secateur.quantities import format_bytes, format_decibels


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
    return {"": number, "1/s": f"{number}/s"}.get(unit, f"{number} {unit}")


def say_noise(measurement: Measurement) -> str:
    """How sure the value is: "± 0.12 dB"; empty where it is counted, or not known."""
    noise = measurement.noise
    return "" if noise is None or not noise.value else f"± {say_value(noise.value, measurement.unit)}"


def _not_finite(measurement: Measurement) -> str:
    if not measurement.infinite:
        return "undefined"
    return "identical" if measurement.unit == "dB" else "infinite"
