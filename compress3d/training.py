"""What trainings from photographs share: what they watch by, and their settings as a checkpoint knows them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

_WATCHED_EVERY, _FEWEST_TO_SPARE, _MOST_WATCHED = 16, 64, 6


def spared(train: list[int]) -> tuple[list[int], list[int]]:
    """Which photographs to train on, and which to watch by: none where there are few."""
    watched = train[::_WATCHED_EVERY][:_MOST_WATCHED] if len(train) >= _FEWEST_TO_SPARE else []
    return [index for index in train if index not in set(watched)], watched


def plain_settings(training: Any) -> dict[str, object]:
    """Each field of a dataclass of settings as text, but for numbers."""
    values = {one.name: getattr(training, one.name) for one in fields(training)}
    return {name: value if isinstance(value, int | float) else repr(value) for name, value in values.items()}
