"""Pages with a scene and a renderer inside: bytes, and what the packing costs, with all, few and no harmonics."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from meters import timed
from parts import Job
from settings import Settings, load, quality

from compress3d.splats.standalone.page import PageScene, read_page, write_page
from secateur.console import Report

HOW = (
    "All Gaussians of each scene as a page, of whatever size, decoded as its viewer decodes it, and judged on the "
    "held-out views against the scene with its harmonics. The canvas of a browser, which rounds each layer of a pixel "
    "to eight bits, is not in it."
)
_ANY_SIZE = 1 << 40


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a scene."""
    return {name: partial(_scene, name, settings) for name in settings.scenes}


def _scene(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene, judge = load(name, settings)
    rows = []
    for number, shown in enumerate(dict.fromkeys(PageScene(name, scene).leaner)):
        report(number / 3, f"{name}: {shown.told}")
        path = folder / f"{number}.html"
        writing = timed(partial(_write, path, shown), min(settings.repeats, 3))
        written = {"sh_degree": shown.scene.sh_degree, "entries": shown.entries, "bytes": path.stat().st_size}
        rows.append(written | {"write": writing} | quality(judge, read_page(path)[0]))
    return {"how": HOW, "gaussians": len(scene), "rows": rows}


def _write(path: Path, shown: PageScene) -> None:
    """Packed anew: a page's scene keeps what it was packed into."""
    write_page(path, path.stem, [replace(shown)], limit_bytes=_ANY_SIZE)
