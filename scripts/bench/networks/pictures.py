"""Pictures of the bench of networks, drawn from its JSON alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from plots import OURS, PROTOTYPE, THEIRS, figure, ticks

from networks.models import KINDS

HIGHLIGHTED = {
    "random": "#111827",
    "magnitude": "#2563eb",
    "LAMP": "#0891b2",
    "SynFlow": "#a21caf",
    "Group Fisher": "#7c3aed",
    "Fisher": "#65a30d",
    "ranks of magnitude and Taylor": OURS,
    "SNIP": "#0b7a4b",
    "SparseGPT": THEIRS,
    "CHITA": "#dc2626",
}
"""Methods with a colour and a name; all others are grey."""

GREY = "#cbd2d9"
SHADES = {
    "secateur": (OURS, "#65a30d", "#0891b2", "#2563eb", "#7c3aed", "#db2777"),
    "torch-pruning": (THEIRS, "#b91c1c", "#f59e0b"),
}


def draw_all(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what the results hold the figures for; returns the files written."""
    written = []
    for section in ("structured", "unstructured"):
        for key, how in (("accuracy_tuned", "fine-tuned"), ("accuracy", "one shot")):
            if results.get(section):
                path = folder / f"criteria_{section}{'' if key == 'accuracy_tuned' else '_one_shot'}.png"
                _accuracy_by_sparsity(results, section, key, how, path)
                written.append(path)
    if results.get("peer"):
        path = folder / "criteria_macs.png"
        _accuracy_by_macs(results, path)
        written.append(path)
    return written


def _accuracy_by_sparsity(results: dict[str, Any], section: str, key: str, how: str, path: Path) -> None:
    """One line a method: its mean over seeds, of its first allocation."""
    names = _networks(results[section])
    with figure(path, len(names), f"Test accuracy by {section} sparsity, {how}", sharey=True) as panels:
        for panel, name in zip(panels, names, strict=True):
            methods = _of_network(results[section], name)
            for method in sorted(methods, key=lambda method: method in HIGHLIGHTED):
                rows = _first_allocation(methods[method]["rows"])
                points = _means(rows, "sparsity", key)
                if not points:
                    continue
                color = HIGHLIGHTED.get(method, GREY)
                width, order = (2.2, 3) if method in HIGHLIGHTED else (1.0, 2)
                label = method if method in HIGHLIGHTED else "other criteria"
                panel.plot(
                    *zip(*points, strict=True),
                    "o-",
                    color=color,
                    linewidth=width,
                    markersize=3,
                    zorder=order,
                    label=label,
                )
            _dense(panel, results, name)
            panel.set_title(name, fontsize=11)
            panel.set_xlabel("multiply-adds gone" if section == "structured" else "weights that are 0")
            sparsities = {row["sparsity"] for record in methods.values() for row in record["rows"]}
            ticks(panel, sorted(sparsities), lambda share: f"{share:.0%}")
        panels[0].set_ylabel("accuracy")


def _accuracy_by_macs(results: dict[str, Any], path: Path) -> None:
    """Ours and torch-pruning's fine-tuned networks by what is left of the multiply-adds."""
    names = _networks(results["peer"])
    with figure(path, len(names), "Test accuracy by multiply-adds, fine-tuned", sharey=True) as panels:
        for panel, name in zip(panels, names, strict=True):
            rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
            for record in _of_network(results["peer"], name).values():
                for row in record["rows"]:
                    if "failed" not in row:
                        rows[row["who"], row["method"]].append(row)
            for who, shades in SHADES.items():
                entrants = sorted(entrant for entrant in rows if entrant[0] == who)
                for number, entrant in enumerate(entrants):
                    groups = _grouped(rows[entrant], "sparsity").values()
                    points = [(mean(r["macs"] for r in g) / 1e6, mean(r["accuracy_tuned"] for r in g)) for g in groups]
                    style = "-" if who == "secateur" else "--"
                    color, label = shades[number % len(shades)], f"{who}: {entrant[1]}"
                    panel.plot(*zip(*sorted(points), strict=True), style, color=color, marker="o", label=label)
            _dense(panel, results, name)
            panel.set_title(name, fontsize=11)
            panel.set_xlabel("million multiply-adds of a picture")
        panels[0].set_ylabel("accuracy")


def _dense(panel: Axes, results: dict[str, Any], name: str) -> None:
    record = results.get("dense", {}).get(name)
    if record:
        panel.axhline(record["accuracy"], color=PROTOTYPE, linewidth=1.0, linestyle=":", label="dense")


def _networks(section: dict[str, Any]) -> list[str]:
    return [name for name in KINDS if any(part.startswith(f"{name}: ") for part in section)]


def _of_network(section: dict[str, Any], name: str) -> dict[str, Any]:
    """Method -> its record."""
    prefix = f"{name}: "
    return {part.removeprefix(prefix): record for part, record in section.items() if part.startswith(prefix)}


def _first_allocation(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["allocation"] == rows[0]["allocation"] and "failed" not in row]


def _grouped(rows: Iterable[dict[str, Any]], key: str) -> dict[float, list[dict[str, Any]]]:
    groups: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups


def _means(rows: Iterable[dict[str, Any]], key: str, value: str) -> list[tuple[float, float]]:
    return sorted((x, mean(row[value] for row in group)) for x, group in _grouped(rows, key).items())
