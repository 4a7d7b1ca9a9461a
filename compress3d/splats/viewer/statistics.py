"""The panel's small tables, as HTML: every name that comes from a file is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from compress3d.splats.evaluate import SceneFile
from compress3d.splats.viewer.appearance import Scale
from secateur.quantities import format_bytes
from secateur.report.pictures import palette_stops

_STYLE = "font-size:.8em;line-height:1.5;padding:0 .9em .3em"


def statistics(files: Sequence[SceneFile], shown: Sequence[int]) -> str:
    """Gaussians, bytes and degree of each file, a column each.

    Args:
        files: the scene, and its twin if there is one.
        shown: how many Gaussians of each the viewer draws; said where it is not all of them.
    """
    rows = [
        ("", [f"<b>{escape(file.name)}</b>" for file in files]),
        ("Gaussians", [f"{file.gaussians:,}" for file in files]),
        ("file", [format_bytes(file.bytes) for file in files]),
        ("bytes a Gaussian", [f"{file.bytes / max(1, file.gaussians):.1f}" for file in files]),
        ("SH degree", [str(file.sh_degree) for file in files]),
    ]
    if any(count < file.gaussians for file, count in zip(files, shown, strict=True)):
        rows.append(("drawn, the most visible", [f"{count:,}" for count in shown]))
    cells = "".join(f"<tr><td>{name}</td>{_right_aligned(values)}</tr>" for name, values in rows)
    note = "Colours are those of degree 0: they do not change with the direction of view."
    table = f'<table style="width:100%;overflow-wrap:anywhere">{cells}</table>'
    return f'<div style="{_STYLE}">{table}<p style="opacity:.7;margin:.4em 0 0">{note}</p></div>'


def budget_line(file: SceneFile, shown: int, kept: int) -> str:
    """What stays of a scene that is cut to `kept` of the `shown` Gaussians: the count, and bytes at the file's rate."""
    share = kept / max(1, shown)
    rate = file.bytes / max(1, file.gaussians)
    return (
        f'<div style="{_STYLE}"><b>{kept:,}</b> stay ({100 * share:.1f} %), {shown - kept:,} go: about '
        f"<b>{format_bytes(rate * kept)}</b> of {format_bytes(rate * shown)} in this format</div>"
    )


def legend(title: str, scale: Scale | None, unit: str = "") -> str:
    """A colour bar: from low to high rank, or between the two values of `scale`."""
    low, high = ("least", "most") if scale is None else (f"{scale.low:.3g}", f"{scale.high:.3g} {unit}".strip())
    if scale is not None and scale.logarithmic:
        title += " (logarithmic scale)"
    bar = f"height:10px;border-radius:5px;background:linear-gradient(to right,{','.join(palette_stops())})"
    ends = f'<div style="display:flex;justify-content:space-between"><span>{low}</span><span>{high}</span></div>'
    return f'<div style="{_STYLE}">{escape(title)}<div style="{bar}"></div>{ends}</div>'


def _right_aligned(values: Sequence[str]) -> str:
    return "".join(f'<td style="text-align:right">{value}</td>' for value in values)
