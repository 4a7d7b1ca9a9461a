"""Plots of the bench of neural fields, drawn from its JSON alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plots import OURS, PROTOTYPE, THEIRS, figure, ticks

Results = Mapping[str, Mapping[str, Any]]

SIZES = {10: OURS, 12: "#2563eb", 14: THEIRS}

COLORS = {
    "Fisher": OURS,
    "magnitude by visits": "#2563eb",
    "magnitude": THEIRS,
    "random": "#111827",
    "STABLE-RPS": "#a21caf",
}


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw what the results hold the figures for; returns the files written."""
    drawn: dict[str, Callable[[Results, Path], None]] = {
        "chair": _training,
        "hollow": _hollow,
        "compress": _compress,
    }
    written = []
    for section, draw in drawn.items():
        if any(record.get("rows") for record in results.get(section, {}).values()):
            path = folder / f"nerf_{section}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(results, path)
            written.append(path)
    return written


def _training(results: Results, path: Path) -> None:
    """PSNR by minutes: the watched pixels all the way, the test views where they were looked at."""
    with figure(path, 1, "The chair, as it is trained") as panels:
        for record in results["chair"].values():
            curve = [(seconds / 60, decibels) for _, seconds, decibels in record["curve"]]
            if curve:
                panels[0].plot(*zip(*curve, strict=True), color=PROTOTYPE, label=record["watched_views"])
            judged = [(row["seconds"] / 60, row["psnr"]) for row in record["rows"]]
            panels[0].plot(*zip(*judged, strict=True), "o", color=OURS, label="test views")
            for bar in record["bars"]:
                label = f"wanted after {bar['minutes']} min"
                panels[0].plot([0, bar["minutes"]], [bar["wanted"]] * 2, ":", color=THEIRS, label=label)
        panels[0].set_xlabel("minutes of training")
        panels[0].set_ylabel("PSNR (dB)")


def _hollow(results: Results, path: Path) -> None:
    """PSNR by parameters, dense and hollow, and the error of what is visible by what is hollow."""
    with figure(path, 2, "HollowNeRF beside the dense grid, equal training") as panels:
        for opaque, style in ((False, "-"), (True, "--")):
            parts = [part for part in results["hollow"].values() if part.get("opaque") is opaque]
            for method, color in (("dense", PROTOTYPE), ("HollowNeRF", OURS)):
                points = sorted(
                    (row["parameters_in_training"] / 1e6, row["psnr"])
                    for part in parts
                    for row in part["rows"]
                    if row["method"] == method and row["share"] in (None, 0.04)
                )
                if points:
                    label = f"{method}, no silhouettes" if opaque else method
                    panels[0].plot(*zip(*points, strict=True), style, marker="o", color=color, label=label)
        for part in results.get("collisions", {}).values():
            for key, style in (("error_fitted", "o-"), ("error", "o:")):
                points = [(row["hollow"], row[key] / part["rows"][0][key]) for row in part["rows"]]
                label, color = f"tables of 2^{part['log2_table']}", SIZES.get(part["log2_table"])
                panels[1].plot(*zip(*points, strict=True), style, color=color, label=label if style == "o-" else "_")
        panels[0].set_xscale("log")
        panels[0].set_xlabel("million parameters in training")
        panels[0].set_ylabel("PSNR (dB)")
        panels[1].set_xlabel("share of space that is hollow")
        panels[1].set_title("least squares; dotted: at other points", fontsize=11)
        panels[1].set_ylabel("error in visible space, relative")


def _compress(results: Results, path: Path) -> None:
    """PSNR by bytes: rows gone, and few bits."""
    with figure(path, 2, "The chair's field, smaller", sharey=True) as panels:
        for part, record in results["compress"].items():
            name = "STABLE-RPS" if part == "sharing" else part.removeprefix("rows: ")
            if name not in COLORS:
                continue
            for key, style in (("psnr", "-"), ("cut_psnr", ":")):
                points = sorted((row["share"], row[key]) for row in record["rows"])
                label = name if key == "psnr" else "_"
                panels[0].plot(*zip(*points, strict=True), style, marker="o", color=COLORS[name], label=label)
        for part, color in (("bits", OURS), ("together", THEIRS), ("levels", "#2563eb"), ("nothing", PROTOTYPE)):
            rows = results["compress"].get(part, {}).get("rows", [])
            points = sorted((row["zstd_bytes"] / 1e6, row["psnr"]) for row in rows)
            if points:
                panels[1].plot(*zip(*points, strict=True), "o", color=color, label=part)
        panels[0].set_title("rows of the tables; dotted: as cut", fontsize=11)
        panels[0].set_xlabel("rows kept")
        ticks(panels[0], [0.1, 0.25, 0.5], lambda share: f"{share:.0%}")
        panels[1].set_title("recovered, by zstd bytes", fontsize=11)
        panels[1].set_xscale("log")
        panels[1].set_xlabel("MB")
        panels[0].set_ylabel("PSNR (dB)")
