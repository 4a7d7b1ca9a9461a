"""Plots of the bench of vision transformers, drawn from its JSON alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from plots import OURS, PROTOTYPE, THEIRS, figure, ticks

COLORS = {
    "Group Fisher": OURS,
    "Group Fisher, with width": "#65a30d",
    "OBA (Taylor of second order)": "#2563eb",
    "MultiPruner": "#a21caf",
    "SlimSAM": "#0891b2",
    "magnitude": THEIRS,
    "random": "#111827",
    "Cropr": OURS,
    "ToMe": "#2563eb",
    "EViT": "#a21caf",
    "DynamicViT": "#0891b2",
    "token norm": THEIRS,
}
GREY = "#cbd2d9"

Row = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw what the results hold the figures for; returns the files written."""
    drawn: dict[str, Callable[[Results, Path], None]] = {
        "static": _static,
        "peer": _peer,
        "tokens": _tokens,
        "latency": _latency,
    }
    written = []
    for section, draw in drawn.items():
        if any(record.get("rows") for record in results.get(section, {}).values()):
            path = folder / f"vit_{section}.png"
            draw(results, path)
            written.append(path)
    return written


def _rows(results: Results, section: str) -> list[Row]:
    """The rows of short trainings."""
    parts = [record for part, record in results[section].items() if not part.endswith("long")]
    return [row for record in parts for row in record.get("rows", ()) if "failed" not in row]


def _by_method(rows: list[Row], x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    """Method -> its points, means over seeds, in order."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.get(y) is not None and x in row:
            found[row["method"]][row[x]].append(row[y])
    return {method: sorted((at, mean(each)) for at, each in points.items()) for method, points in found.items()}


def _lines(panel: Axes, curves: Mapping[str, list[tuple[float, float]]], other: str) -> None:
    for method in sorted(curves, key=lambda method: method in COLORS):
        known = method in COLORS
        label, color = (method, COLORS[method]) if known else (other, GREY)
        panel.plot(
            *zip(*curves[method], strict=True),
            "o-",
            color=color,
            label=label,
            markersize=4,
            linewidth=2 if known else 1,
        )


def _dense(panel: Axes, record: Mapping[str, Any] | None) -> None:
    if record:
        panel.axhline(record["accuracy"], color=PROTOTYPE, linewidth=1.0, linestyle=":", label="dense")


def _static(results: Results, path: Path) -> None:
    rows = _rows(results, "static")
    titles = {"accuracy": "as cut", "accuracy_tuned": "after 80 steps of training"}
    with figure(path, 2, "Accuracy of the demo ViT by the multiply-adds that are gone") as panels:
        for panel, (key, title) in zip(panels, titles.items(), strict=True):
            _lines(panel, _by_method(rows, "sparsity", key), "other criteria")
            _dense(panel, results.get("dense", {}).get("fashion"))
            panel.set_title(title, fontsize=11)
            panel.set_xlabel("multiply-adds gone")
            ticks(panel, sorted({row["sparsity"] for row in rows}), lambda share: f"{share:.0%}")
        panels[0].set_ylabel("accuracy")


def _peer(results: Results, path: Path) -> None:
    """Ours and torch-pruning's after training, by what is left, a panel for each way of theirs."""
    parts: dict[str, list[Row]] = defaultdict(list)
    for part, record in results["peer"].items():
        parts[part.partition(":")[0]] += [row for row in record["rows"] if "failed" not in row]
    parts = {how: rows for how, rows in parts.items() if rows}
    with figure(path, len(parts), "Accuracy after training, at equal multiply-adds", sharey=True) as panels:
        for panel, (how, rows) in zip(panels, parts.items(), strict=True):
            for who, color in (("torch-pruning", THEIRS), ("secateur", OURS)):
                own = [row for row in rows if row["who"] == who]
                for number, points in enumerate(_by_method(own, "sparsity", "accuracy_tuned").values()):
                    style = ("-", "--")[number % 2]
                    panel.plot(*zip(*points, strict=True), style, marker="o", color=color, label=who, markersize=4)
            panel.set_title(how, fontsize=9)
            panel.set_xlabel("multiply-adds gone")
            ticks(panel, sorted({row["sparsity"] for row in rows}), lambda share: f"{share:.0%}")
        panels[0].set_ylabel("accuracy")


def _tokens(results: Results, path: Path) -> None:
    rows = _rows(results, "tokens")
    titles = {"accuracy": "as they are", "accuracy_tuned": "after 150 steps of training"}
    with figure(path, 2, "Accuracy of the demo ViT on fewer tokens") as panels:
        for panel, (key, title) in zip(panels, titles.items(), strict=True):
            _lines(panel, _by_method(rows, "speed", key), "others")
            _dense(panel, results.get("dense", {}).get("fashion"))
            panel.set_title(title, fontsize=11)
            panel.set_xlabel("times fewer multiply-adds")
            ticks(panel, sorted({row["speed"] for row in rows if "speed" in row}) or [1.0], lambda speed: f"{speed:g}x")
        panels[0].set_ylabel("accuracy")


def _latency(results: Results, path: Path) -> None:
    parts = results["latency"]
    with figure(
        path, len(parts), "Speed at 224 x 224 by what is gone; dotted: by multiply-adds", sharey=True
    ) as panels:
        for panel, (part, record) in zip(panels, parts.items(), strict=True):
            measured = _by_method(record["rows"], "share", "speedup")
            wanted = _by_method(record["rows"], "share", "theoretical_speedup")
            for color, method in zip((PROTOTYPE, "#111827", "#2563eb", OURS), measured, strict=False):
                panel.plot(*zip(*measured[method], strict=True), "o-", color=color, label=method, markersize=4)
                panel.plot(*zip(*wanted[method], strict=True), ":", color=color)
            panel.set_title(part, fontsize=10)
            panel.set_xlabel("share gone")
            ticks(panel, sorted({row["share"] for row in record["rows"]}), lambda share: f"{share:.0%}")
        panels[0].set_ylabel("times faster than dense")
