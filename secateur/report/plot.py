"""A curve as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from html import escape

from secateur.report.page import Plot

_WIDTH, _HEIGHT = 440, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 424, 18, 236


def render_plot(plot: Plot) -> str:
    """An SVG of the curve through the plot's points, from left to right, each with its name.

    Points that are not finite have no place on it and are left out.
    """
    points = sorted((point for point in plot.points if math.isfinite(point.x + point.y)), key=lambda point: point.x)
    xs, ys = _Axis([point.x for point in points], _LEFT, _RIGHT), _Axis([point.y for point in points], _BOTTOM, _TOP)
    places = [(xs(point.x), ys(point.y)) for point in points]
    parts = [f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{ys(y):.1f}" y2="{ys(y):.1f}"/>' for y in ys.ticks]
    parts += [f'<text class="tick end" x="{_LEFT - 8}" y="{ys(y) + 4:.1f}">{_number(y)}</text>' for y in ys.ticks]
    parts += [f'<text class="tick mid" x="{xs(x):.1f}" y="{_BOTTOM + 18}">{_number(x)}</text>' for x in xs.ticks]
    parts.append(f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    for point, (x, y) in zip(points, places, strict=True):
        anchor = "end" if x > 0.8 * _RIGHT else "start"
        shift, below = (-9, -9) if anchor == "end" else (9, 16)
        parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        parts.append(f'<text class="name {anchor}" x="{x + shift:.1f}" y="{y + below:.1f}">{escape(point.name)}</text>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text class="axis mid" x="{middle}" y="{_HEIGHT - 8}">{escape(plot.x_label)}</text>')
    parts.append(
        f'<text class="axis mid" transform="translate(13 {_HEIGHT / 2 - 12}) rotate(-90)">{escape(plot.y_label)}</text>'
    )
    described = "; ".join(f"{point.name}: {_number(point.x)}, {_number(point.y)}" for point in points)
    label = escape(f"{plot.title}. {plot.y_label} over {plot.x_label}. {described}", quote=True)
    return f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


class _Axis:
    """Maps values to pixels, with a few round ticks."""

    def __init__(self, values: list[float], start: float, end: float) -> None:
        low, high = min(values, default=0.0), max(values, default=1.0)
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        self.low, self.high = low - margin, high + margin
        if low >= 0 > self.low:
            self.low = 0.0
        self.start, self.end = start, end
        step = _round_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step)
        self.ticks = [index * step for index in range(first, math.floor(self.high / step) + 1)]

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _number(value: float) -> str:
    return f"{value:.4g}"
