"""Pictures of the splat bench, drawn from its JSON alone; light, with a ground of their own for dark pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from secateur.files import replacing_file

OURS, THEIRS, PROTOTYPE = "#0b7a4b", "#c4560c", "#6b7280"
INK, GRID = "#1f2933", "#e3e7eb"
SCENES = ("playbot", "biker", "plant")

Panels = Sequence[Axes]


def draw_all(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what the results hold the figures for; returns the files written."""
    pictures: dict[str, tuple[str, Callable[[dict[str, Any], Path], None]]] = {
        "psnr_by_share.png": ("simplify", _psnr_by_share),
        "psnr_by_criterion.png": ("criteria", _psnr_by_criterion),
        "rate_distortion.png": ("recover", _rate_distortion),
        "rasterizer_growth.png": ("growth", _rasterizer_growth),
        "sog_size.png": ("size", _sog_size),
    }
    written = []
    for name, (section, draw) in pictures.items():
        if results.get(section):
            draw(results[section], folder / name)
            written.append(folder / name)
    return written


@contextmanager
def figure(path: Path, panels: int, title: str, sharey: bool = False) -> Iterator[Panels]:
    """Panels side by side, 1600 pixels wide; saved when the context closes."""
    style: Any = {"font.size": 11, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            1, panels, figsize=(10, 4.1), dpi=160, squeeze=False, sharey=sharey, layout="constrained"
        )
        figure.suptitle(title, fontsize=12.5, fontweight="bold", x=0.01, ha="left")
        for panel in axes[0]:
            panel.grid(color=GRID, linewidth=0.8)
            panel.set_axisbelow(True)
            panel.spines[["top", "right"]].set_visible(False)
            panel.spines[["left", "bottom"]].set_color("#9aa5b1")
        yield axes[0]
        lines = {
            str(line.get_label()): line
            for panel in axes[0]
            for line in panel.get_lines()
            if not str(line.get_label()).startswith("_")
        }
        longest = max((len(label) for label in lines), default=0)
        columns = max(1, min(len(lines), 130 // (longest + 6)))
        figure.legend(
            handles=list(lines.values()), loc="outside lower center", ncols=columns, frameon=False, fontsize=10
        )
        with replacing_file(path) as temporary:
            figure.savefig(temporary, facecolor="white")
        plt.close(figure)


def _psnr_by_share(section: dict[str, Any], path: Path) -> None:
    names = [name for name in SCENES if name in section]
    with figure(path, len(names), "PSNR against the original, on held-out views", sharey=True) as panels:
        for panel, name in zip(panels, names, strict=True):
            record = section[name]
            reference = record["reference"]
            figures = reference["+ colour refit"][name]
            drawn = [(share, psnr) for share, psnr in zip(reference["shares"], figures, strict=True) if psnr]
            _line(panel, drawn, "prototype (quoted)", PROTOTYPE, dashed=True)
            _line(panel, _points(record, "splat-transform", "share"), "splat-transform --decimate", THEIRS)
            ours = _points(record, "ours", "share")
            _line(panel, ours, "secateur", OURS)
            for share, psnr in ours:
                place: Any = {"xytext": (-6, 4), "textcoords": "offset points", "ha": "right", "va": "bottom"}
                panel.annotate(f"{psnr:.1f}", (share, psnr), color=OURS, **place)
            panel.set_title(f"{name}, {record['gaussians']:,} Gaussians", fontsize=11)
            panel.set_xlabel("Gaussians kept")
            ticks(panel, sorted({row["share"] for row in record["rows"]}), lambda share: f"{share:.0%}")
            panel.margins(x=0.2, y=0.12)
        panels[0].set_ylabel("PSNR (dB)")


def _psnr_by_criterion(section: dict[str, Any], path: Path) -> None:
    """One line a criterion, best selection on top, at the share in the middle of those measured."""
    measured = {tuple(part.split(": ", 1)): record for part, record in section.items() if record["rows"]}
    names = [name for name in SCENES if any(name == scene for scene, _ in measured)]
    shares = sorted({row["share"] for record in measured.values() for row in record["rows"]})
    share = shares[len(shares) // 2]
    marks = {("selection", False): ("o", PROTOTYPE), ("selection", True): ("o", OURS)}
    marks |= {("merging", False): ("D", PROTOTYPE), ("merging", True): ("D", OURS)}

    def chosen(name: str, how: str, recovered: bool) -> dict[str, float]:
        return {
            method: row["psnr"]
            for (scene, method), record in measured.items()
            for row in record["rows"]
            if scene == name and (row["share"], row["how"], row["recovered"]) == (share, how, recovered)
        }

    alone = [chosen(name, "selection", False) for name in names]
    methods = sorted(alone[0], key=lambda method: sum(each.get(method, 0.0) for each in alone))
    title = f"PSNR by criterion, {share:.0%} of the Gaussians kept, on held-out views"
    with figure(path, len(names), title, sharey=True) as panels:
        for panel, name in zip(panels, names, strict=True):
            for (how, recovered), (marker, color) in marks.items():
                points = {method: psnr for method, psnr in chosen(name, how, recovered).items() if method in methods}
                label = f"{how}, recovered" if recovered else how
                places = [methods.index(method) for method in points]
                panel.plot(list(points.values()), places, marker, color=color, label=label, markersize=5)
            panel.set_title(name, fontsize=11)
            panel.set_xlabel("PSNR (dB)")
        panels[0].set_yticks(range(len(methods)), methods, fontsize=7)


def _sog_size(section: dict[str, Any], path: Path) -> None:
    names = [name for name in SCENES if name in section]
    with figure(path, len(names), "PSNR of a .sog file by its size, on held-out views", sharey=True) as panels:
        for panel, name in zip(panels, names, strict=True):
            record = section[name]
            theirs, ours = _points(record, "splat-transform", "bytes"), _points(record, "ours", "bytes")
            _line(panel, theirs, "splat-transform", THEIRS)
            _line(panel, ours, "secateur", OURS)
            failed = [row for row in record["rows"] if "failed" in row]
            if failed:
                smallest = min(failed, key=lambda row: row["share"])
                note = f"splat-transform {smallest['failed']} at {smallest['share']:.0%}"
                panel.annotate(note, (0.97, 0.05), xycoords="axes fraction", ha="right", color=THEIRS, fontsize=9)
            panel.set_title(f"{name}, {record['gaussians']:,} Gaussians", fontsize=11)
            panel.set_xscale("log")
            ticks(panel, sorted({size for size, _ in ours}), lambda size: f"{size / 1e6:.2g}")
            panel.set_xlabel("file size (MB)")
            panel.margins(x=0.2, y=0.12)
        panels[0].set_ylabel("PSNR (dB)")


def _rate_distortion(section: dict[str, Any], path: Path) -> None:
    names = [name for name in SCENES if name in section]
    with figure(path, len(names), "PSNR by share of the Gaussians, with and without recovery", sharey=True) as panels:
        for panel, name in zip(panels, names, strict=True):
            record = section[name]
            _line(panel, _points(record, "without gradients", "share"), "merged and refitted", PROTOTYPE, dashed=True)
            ours = [row for row in record["rows"] if row["method"] == "ours"]
            _line(panel, [(row["share"], row["psnr"]) for row in ours], "recovered, as .sog", OURS)
            for row in ours:
                place: Any = {"xytext": (-5, 5), "textcoords": "offset points", "ha": "right", "fontsize": 8}
                panel.annotate(f"{row['bytes'] / 1e6:.2g} MB", (row["share"], row["psnr"]), color=OURS, **place)
            panel.set_title(f"{name}, {record['gaussians']:,} Gaussians", fontsize=11)
            panel.set_xscale("log")
            panel.set_xlabel("Gaussians kept")
            ticks(panel, sorted({row["share"] for row in ours}), lambda share: f"{share:.0%}")
            panel.margins(x=0.3, y=0.12)
        panels[0].set_ylabel("PSNR (dB)")


def _rasterizer_growth(section: dict[str, Any], path: Path) -> None:
    counts = {int(part): record["frame"] for part, record in section.items() if part.isdigit()}
    sizes = section.get("resolutions", {})
    size = next((record["size"] for part, record in section.items() if part.isdigit()), 0)
    by: list[tuple[dict[int, Any], str, str, Callable[[Any], str]]]
    by = [(counts, "Gaussians", f"{size} x {size} pixels", _thousands)]
    if sizes:
        frames = {int(size): frame for size, frame in sizes["frame"].items()}
        by.append((frames, "width and height (pixels)", f"{sizes['gaussians']:,} Gaussians", str))
    by = [entry for entry in by if entry[0]]
    with figure(path, len(by), "Time of a frame on the CPU") as panels:
        for panel, (frames, label, title, text) in zip(panels, by, strict=True):
            for who, name, color in (("prototype", "prototype", PROTOTYPE), ("ours", "secateur", OURS)):
                points = [(at, frame[who]["median_ms"]) for at, frame in sorted(frames.items()) if who in frame]
                _line(panel, points, name, color, dashed=who == "prototype")
            panel.set_xscale("log")
            panel.set_yscale("log")
            ticks(panel, sorted(frames), text)
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.set_xlabel(label)
            panel.set_title(title, fontsize=11)
        panels[0].set_ylabel("milliseconds a frame")


def _points(record: dict[str, Any], method: str, key: str) -> list[tuple[float, float]]:
    """(key, psnr) of a method's rows, in order of the key; rows that failed have none."""
    rows = [row for row in record["rows"] if row["method"] == method and row.get("psnr") is not None]
    return sorted((row[key], row["psnr"]) for row in rows)


def _line(panel: Axes, points: Sequence[tuple[float, float]], label: str, color: str, dashed: bool = False) -> None:
    if points:
        xs, ys = zip(*sorted(points), strict=True)
        style = "--" if dashed else "-"
        panel.plot(xs, ys, style, color=color, label=label, marker="o", markersize=5, linewidth=1.4 if dashed else 2.2)


def ticks(panel: Axes, values: Sequence[float], text: Callable[[Any], str]) -> None:
    """Ticks at the measured values only."""
    panel.xaxis.set_major_locator(FixedLocator(list(values)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(type(values[0])(value))))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _thousands(count: int) -> str:
    return f"{count / 1e6:g}M" if count >= 1_000_000 else f"{count / 1e3:g}k"
