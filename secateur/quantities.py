"""Amounts as people write them: "25%", "50k", "2MB", "35 dB"."""

from __future__ import annotations

import math
import re

_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6}


def parse_keep(value: str | float | int) -> float | int:
    """How much to keep: a share of the whole (a float in (0, 1]) or a count (an int, at least 1).

    Shares are "25%", "0.25" and 0.25; counts are "50000", "50_000", "50k", "1.5M" and 50000. "1" is one unit, "1.0" is
    everything.

    Raises:
        ValueError: the text is neither, or the share is not in (0, 1], or the count is below 1.
    """
    text = str(value).strip()
    number, unit = _split(text)
    if unit == "%" or (unit == "" and isinstance(value, float)) or (unit == "" and "." in text):
        share = number / 100 if unit == "%" else number
        if share > 1 and unit == "":
            raise ValueError(f"{text!r} is not a share to keep: a share is at most 1; did you mean {text}%?")
        if not 0 < share <= 1:
            raise ValueError(f"{text!r} is not a share to keep: it must be above 0% and at most 100%")
        return share
    if unit.lower() not in _THOUSANDS or not math.isfinite(number):
        raise ValueError(f"{text!r} is not an amount to keep: write a share (25%, 0.25) or a count (50000, 50k)")
    count = number * _THOUSANDS[unit.lower()]
    if count != int(count) or count < 1:
        raise ValueError(f"{text!r} is not a count to keep: it must be a whole number, at least 1")
    return int(count)


def parse_size(value: str | float | int) -> int:
    """Bytes from "2MB" (10^6), "800kB", "1.5 MiB" (2^20) or a bare number of bytes.

    Raises:
        ValueError: the text is no such size, or it is below one byte.
    """
    text = str(value).strip()
    number, unit = _split(text)
    if unit.lower() not in _BYTES or not math.isfinite(number):
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with kB, MB, GB, KiB, MiB or GiB")
    size = int(number * _BYTES[unit.lower()])
    if size < 1:
        raise ValueError(f"{text!r} is not a size: it must be at least one byte")
    return size


def parse_decibels(value: str | float | int) -> float:
    """A quality in dB from "35", "35 dB" or 35.

    Raises:
        ValueError: the text is no such quality, or it is not above 0.
    """
    text = str(value).strip()
    number, unit = _split(text)
    if unit.lower() not in ("", "db") or not 0 < number < math.inf:
        raise ValueError(f"{text!r} is not a quality in dB: write a number above 0, such as 35")
    return number


def format_bytes(size: float) -> str:
    """Bytes for people, MB = 10^6: "812 B", "4.7 MB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 999.5 * factor else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} B"


def format_count(count: float) -> str:
    """A count for people, in millions to trillions from a million up: "381,610", "17.7 M", "20.9 G"."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 999.5 * factor else f"{count / factor:.0f} {unit}"
    return f"{count:,.0f}"


def format_decibels(value: float) -> str:
    """Decibels for people: "35.20 dB", or "identical" where there is no error at all."""
    return f"{value:.2f} dB" if math.isfinite(value) else "identical"


def _split(text: str) -> tuple[float, str]:
    """The number at the front of `text` and the unit behind it; NaN when there is no number."""
    match = re.fullmatch(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)", text)
    return (float(match[1]), match[2]) if match else (math.nan, text)
