"""Plots of the bench of diffusion models, drawn from its JSON alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from plots import OURS, PROTOTYPE, THEIRS, figure, ticks

COLORS = {
    "EcoDiff": OURS,
    "Taylor": "#2563eb",
    "Diff-Pruning": "#0891b2",
    "magnitude": THEIRS,
    "Wanda": "#a21caf",
    "random": "#111827",
    "LD-Pruner": "#65a30d",
    "blocks": "#b91c1c",
}

Curves = dict[str, dict[float, list[float]]]
"""Method -> share -> the values of all seeds."""


def draw_all(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the results hold the figures for; returns the files written."""
    written = []
    for name in sorted({part.partition(":")[0] for part in results.get("one_shot", {})}):
        panels = {
            "one shot": _curves(results, name, False, False),
            "after OBS repair": _curves(results, name, True, False),
            "after 100 steps of training": _recovered(results, name),
        }
        panels = {title: curves for title, curves in panels.items() if curves}
        if not panels:
            continue
        path = folder / f"diffusion_{name.replace('-', '_')}.png"
        _draw(name, panels, results, path)
        written.append(path)
    return written


def _draw(name: str, panels: Mapping[str, Curves], results: Mapping[str, Any], path: Path) -> None:
    with figure(path, len(panels), f"{name}: Frechet distance by the multiply-adds that are gone", sharey=True) as axes:
        for panel, (title, curves) in zip(axes, panels.items(), strict=True):
            for method in [*COLORS, *sorted(set(curves) - set(COLORS))]:
                points = sorted((share, mean(values)) for share, values in curves.get(method, {}).items())
                if points:
                    style = {"color": COLORS.get(method, PROTOTYPE), "linewidth": 2.4 if method == "EcoDiff" else 1.5}
                    panel.plot(*zip(*points, strict=True), "o-", markersize=4, label=method, **style)
            _reference(panel, results.get("dense", {}).get(name))
            panel.set_title(title, fontsize=11)
            panel.set_yscale("log")
            panel.set_xlabel("multiply-adds gone")
            ticks(panel, sorted({share for by_share in curves.values() for share in by_share}), lambda s: f"{s:.0%}")
        axes[0].set_ylabel("FD on the classifier's features")


def _reference(panel: Axes, record: Mapping[str, Any] | None) -> None:
    if record and record.get("rows"):
        dense = mean(row["frechet"] for row in record["rows"])
        floor = mean(row["floor"] for row in record["rows"])
        panel.axhline(dense, color=PROTOTYPE, linewidth=1.0, linestyle=":", label="dense")
        panel.axhline(floor, color=PROTOTYPE, linewidth=1.0, linestyle="--", label="real pictures")


def _curves(results: Mapping[str, Any], name: str, repaired: bool, recovered: bool) -> Curves:
    found: Curves = defaultdict(lambda: defaultdict(list))
    for section in ("one_shot", "blocks"):
        for method, row in _rows(results.get(section, {}), name):
            stage = row.get("repaired"), row.get("recovered", False)
            if "share" in row and "frechet" in row and stage == (repaired, recovered):
                found[method][row["share"]].append(row["frechet"])
    return found


def _recovered(results: Mapping[str, Any], name: str) -> Curves:
    """Recovered after repair where there was one, by the short training."""
    found: Curves = defaultdict(lambda: defaultdict(list))
    for method, row in _rows(results.get("recovered", {}), name):
        if row["repaired"] and "frechet" in row and "steps" not in row:
            found[method][row["share"]].append(row["frechet"])
    for method, row in _rows(results.get("blocks", {}), name):
        if row.get("recovered") and "share" in row and "frechet" in row:
            found[method][row["share"]].append(row["frechet"])
    return found


def _rows(section: Mapping[str, Any], name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """(method, row) of all parts of a model."""
    for part, record in section.items():
        model, method = part.split(": ")[:2]
        if model == name:
            yield from ((method, row) for row in record.get("rows", ()))
