"""How time grows with the number of Gaussians and with the resolution, on the procedural bonsai."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from jobs import alternate, draw_ours, draw_prototype, scoring_views, simplify_by_step, thinned, warm_up
from meters import timed
from parts import Job
from peers import load_prototype
from settings import Settings

from compress3d.cameras import Cameras
from compress3d.splats.bonsai import bonsai
from compress3d.splats.formats import write_scene
from compress3d.splats.importance import Spectral
from compress3d.splats.scene import SplatScene
from compress3d.splats.sizes import scene_bytes
from compress3d.splats.views import orbit
from secateur.console import Report

COUNTS = (50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000)
SIMPLIFIED_UP_TO = 1_000_000
WRITTEN_UP_TO = 1_000_000
SIZE = 800
RESOLUTIONS = (200, 400, 800, 1200, 1600)
RESOLUTION_COUNT = 200_000
VIEWS = 3

HOW = (
    "The procedural bonsai (SH degree 3; the prototype leaves degree 3 out), seen from an orbit. Simplified to a "
    "quarter, in process, with the views that compress samples."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a count, and one for all resolutions."""
    counts = (2_000, 4_000) if settings.quick else COUNTS
    parts: dict[str, Job] = {str(count): partial(_count, count, settings) for count in counts}
    return parts | {"resolutions": partial(_resolutions, settings)}


def _count(count: int, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    report(0.0, f"{count:,} Gaussians: growing the bonsai")
    scene = bonsai(count)
    size = 200 if settings.quick else SIZE
    record: dict[str, Any] = {"how": HOW, "gaussians": len(scene), "size": size}
    report(0.1, f"{count:,} Gaussians: drawing")
    record["frame"] = _frame_times(scene, orbit(scene, VIEWS, size, size), settings)
    report(0.4, f"{count:,} Gaussians: spectral importance")
    Spectral().score(bonsai(1000))
    record["spectral"] = timed(lambda: Spectral().score(scene), 1 if settings.quick else 3)
    if count <= SIMPLIFIED_UP_TO:
        report(0.5, f"{count:,} Gaussians: simplifying")
        warm_up(scene)
        _, record["simplify_seconds"] = simplify_by_step(scene, count // 4, scoring_views(scene))
    if count <= WRITTEN_UP_TO:
        report(0.8, f"{count:,} Gaussians: writing .sog")
        path = folder / "bonsai.sog"
        write_scene(thinned(scene), path)
        record["sog"] = timed(lambda: write_scene(scene, path), 1) | {"bytes": scene_bytes(path)}
    return record


def _resolutions(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene = bonsai(2_000 if settings.quick else RESOLUTION_COUNT)
    sizes = RESOLUTIONS[:2] if settings.quick else RESOLUTIONS
    frames = {}
    for number, size in enumerate(sizes):
        report(number / len(sizes), f"resolution {size}")
        frames[str(size)] = _frame_times(scene, orbit(scene, VIEWS, size, size), settings)
    return {"gaussians": len(scene), "frame": frames}


def _frame_times(scene: SplatScene, cameras: Cameras, settings: Settings) -> dict[str, dict[str, float]]:
    draws = {"ours": draw_ours(scene, cameras)}
    with suppress(FileNotFoundError):
        draws["prototype"] = draw_prototype(load_prototype(), scene, cameras)
    return alternate(draws, len(cameras), min(settings.repeats, 3))
