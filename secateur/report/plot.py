"""A plot as inline SVG, coloured by the page's style sheet: points that choose a result, a line through the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from secateur.report.page import Better, Plot, Point
from secateur.report.plot_axis import Axis, axis_of
from secateur.report.plot_labels import place_labels

WIDTH, HEIGHT = 370, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 360, 14, 236
_LONGEST, _LONGEST_TITLE = 24, 44


def render_plot(plot: Plot, choices: Mapping[str, int] | None = None) -> str:
    """An SVG of the points, each with its name where there is room, and of the line that `Plot` speaks of.

    Points that are not finite have no place on it and are left out.

    Args:
        plot: what it shows.
        choices: name -> index of the result that a point of this name chooses.
    """
    points = sorted((point for point in plot.points if math.isfinite(point.x + point.y)), key=lambda point: point.x)
    xs = axis_of([point.x for point in points], _LEFT, _RIGHT)
    ys = axis_of([end for point in points for end in (point.y, *(point.interval or ()))], _BOTTOM, _TOP)
    compared = plot.x_better != "neither" and plot.y_better != "neither"
    front = pareto_front(points, plot.x_better, plot.y_better) if compared else points
    line = " ".join(f"{xs(point.x):.1f},{ys(point.y):.1f}" for point in front)
    parts = [*_grid(xs, ys), f'<polyline class="curve" points="{line}"/>']
    parts += [_point(point, xs, ys, point in front, (choices or {}).get(point.name)) for point in points]
    names = [_shortened(point.name) for point in points]
    places, corners = ([(xs(point.x), ys(point.y)) for point in some] for some in (points, front))
    labels = place_labels(names, places, (_LEFT, _TOP, _RIGHT, _BOTTOM), corners)
    for name, label in zip(names, labels, strict=True):
        if label is not None:
            x, y, anchor = label
            parts.append(f'<text class="name {anchor}" x="{x:.1f}" y="{y:.1f}">{escape(name)}</text>')
    parts += _axis_titles(plot)
    described = "; ".join(f"{point.name}: {_number(point.x)}, {_number(point.y)}" for point in points)
    said = escape(f"{plot.title}. {plot.y_label} over {plot.x_label}. {described}", quote=True)
    role = "group" if any(point.name in (choices or {}) for point in points) else "img"
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="{role}" aria-label="{said}">{"".join(parts)}</svg>'


def pareto_front(points: Sequence[Point], x_better: Better, y_better: Better) -> list[Point]:
    """The points that no other is at least as good as in both and better in one, from left to right."""
    right, up = (1.0 if better == "higher" else -1.0 for better in (x_better, y_better))

    def beaten(one: Point) -> bool:
        return any(
            right * other.x >= right * one.x and up * other.y >= up * one.y and (other.x, other.y) != (one.x, one.y)
            for other in points
        )

    return sorted((point for point in points if not beaten(point)), key=lambda point: point.x)


def _grid(xs: Axis, ys: Axis) -> list[str]:
    parts = [f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{ys(y):.1f}" y2="{ys(y):.1f}"/>' for y in ys.ticks]
    parts += [f'<text class="tick end" x="{_LEFT - 8}" y="{ys(y) + 4:.1f}">{_number(y)}</text>' for y in ys.ticks]
    parts += [f'<text class="tick mid" x="{xs(x):.1f}" y="{_BOTTOM + 18}">{_number(x)}</text>' for x in xs.ticks]
    return parts


def _point(point: Point, xs: Axis, ys: Axis, front: bool, chosen: int | None) -> str:
    """The mark, with an area around it that fingers hit; a button where it chooses a result."""
    x, y = xs(point.x), ys(point.y)
    said = escape(f"{point.name}: {_number(point.x)}, {_number(point.y)}", quote=True)
    drawn = "" if point.interval is None else _whisker(x, *(ys(end) for end in point.interval))
    drawn += f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    kind = "mark" if front else "mark behind"
    if chosen is None:
        return f'<g class="{kind} still"><title>{said}</title>{drawn}</g>'
    button = f'role="button" tabindex="0" data-result="{chosen}" aria-pressed="false" aria-label="{said}"'
    area = f'<circle class="area" cx="{x:.1f}" cy="{y:.1f}" r="15"/>'
    return f'<g class="{kind}" {button}><title>{said}</title>{area}{drawn}</g>'


def _whisker(x: float, low: float, high: float) -> str:
    ends = "".join(f"M{x - 4:.1f} {y:.1f}h8" for y in (low, high))
    return f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}{ends}"/>'


def _axis_titles(plot: Plot) -> list[str]:
    """The name of each axis, and below it which way is better."""
    said = {"higher": "more is better →", "lower": "← less is better", "neither": ""}
    across, middle = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    x_title, y_title = (escape(_shortened(label, _LONGEST_TITLE)) for label in (plot.x_label, plot.y_label))
    return [
        f'<text class="axis mid" x="{across}" y="{_BOTTOM + 38}">{x_title}</text>',
        f'<text class="tick mid" x="{across}" y="{_BOTTOM + 54}">{said[plot.x_better]}</text>',
        f'<text class="axis mid" transform="translate(13 {middle}) rotate(-90)">{y_title}</text>',
        f'<text class="tick mid" transform="translate(28 {middle}) rotate(-90)">{said[plot.y_better]}</text>',
    ]


def _shortened(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _number(value: float) -> str:
    return f"{value:.4g}"
