"""Where the names of a plot's points go, so that they cover neither one another nor the points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_LETTER, _LINE = 7.4, 14.0
"""Pixels that a letter is wide and a line is high, about."""

_AWAY = 9.0


class Label(NamedTuple):
    """Where the text begins (anchor "start"), ends ("end") or has its middle ("mid"), on its base line."""

    x: float
    y: float
    anchor: str


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def within(self, other: _Box) -> bool:
        across = self.left >= other.left and self.right <= other.right
        return across and self.top >= other.top and self.bottom <= other.bottom


def place_labels(
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    area: tuple[float, float, float, float],
    line: Sequence[tuple[float, float]] = (),
) -> list[Label | None]:
    """A place for each name beside its point, tried to the right, left, above and below; None where all are taken.

    Args:
        names: in the order in which they choose.
        points: (x, y) pixels.
        area: left, top, right and bottom of where names may be.
        line: corners of a line that names cover only where there is no other place.
    """
    along = _boxes_along(line)
    taken = [_Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    placed: list[Label | None] = []
    for name, (x, y) in zip(names, points, strict=True):
        width = _LETTER * len(name)
        tries = (
            Label(x + _AWAY, y + 14, "start"),
            Label(x - _AWAY, y - 7, "end"),
            Label(x + _AWAY, y - 7, "start"),
            Label(x - _AWAY, y + 14, "end"),
            Label(x, y - 11, "mid"),
            Label(x, y + 20, "mid"),
        )
        boxes = [_box(label, width) for label in tries]
        free = [
            index
            for index, box in enumerate(boxes)
            if box.within(_Box(*area)) and not any(box.meets(other) for other in taken)
        ]
        clear = [index for index in free if not any(boxes[index].meets(other) for other in along)]
        found = next(iter(clear or free), None)
        placed.append(None if found is None else tries[found])
        if found is not None:
            taken.append(boxes[found])
    return placed


def _boxes_along(line: Sequence[tuple[float, float]]) -> list[_Box]:
    """Small boxes, a few pixels apart, that cover a line."""
    boxes = []
    for (x, y), (to_x, to_y) in pairwise(line):
        steps = max(1, round(max(abs(to_x - x), abs(to_y - y)) / 4))
        for step in range(steps + 1):
            at_x, at_y = x + (to_x - x) * step / steps, y + (to_y - y) * step / steps
            boxes.append(_Box(at_x - 1.5, at_y - 1.5, at_x + 1.5, at_y + 1.5))
    return boxes


def _box(label: Label, width: float) -> _Box:
    left = label.x - {"start": 0.0, "mid": 0.5, "end": 1.0}[label.anchor] * width
    return _Box(left, label.y - _LINE + 3, left + width, label.y + 3)
