"""The file formats: seconds to write and to read, bytes, and what the round trip costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jobs import in_own_process, peer_rows, thinned
from meters import timed
from parts import Job
from peers import Process
from settings import Settings, load, quality

from compress3d.splats import read_scene
from compress3d.splats.bonsai import bonsai
from compress3d.splats.evaluate import Judge
from compress3d.splats.formats import write_scene
from compress3d.splats.scene import SplatScene
from compress3d.splats.sizes import scene_bytes
from secateur.console import Report

FORMATS: dict[str, tuple[str, dict[str, int]]] = {
    "ply": ("ply", {}),
    "compressed.ply": ("compressed.ply", {}),
    "splat": ("splat", {}),
    "spz, version 3": ("spz", {"version": 3}),
    "spz, version 4": ("spz", {"version": 4}),
    "sog": ("sog", {}),
    "glb": ("glb", {}),
}
"""Name -> suffix and options of our writer."""

THEIRS: dict[str, tuple[str, ...]] = {
    "ply": (),
    "compressed.ply": (),
    "spz, version 3": ("--spz-version", "3"),
    "spz, version 4": ("--spz-version", "4"),
    "sog": (),
    "glb": (),
}
"""Name -> options of theirs, for the formats that it writes."""

HOW = (
    "All Gaussians of each scene, written, read back, and judged on the held-out views against the scene in memory; "
    "psnr is null where the round trip changes no pixel. Theirs: splat-transform from the PLY that we wrote, seconds "
    "of the whole process, its file read by us; its .spz has the axes of the PLY rather than SPZ's, as our reader "
    "is told."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a scene, and reading a large PLY."""
    scenes: dict[str, Job] = {name: partial(_scene, name, settings) for name in settings.scenes}
    return scenes | {"large ply": partial(_large_ply, settings)}


def _scene(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene, judge = load(name, settings)
    source = folder / "source.ply"
    write_scene(scene, source)
    rows = []
    for number, (format, (suffix, options)) in enumerate(FORMATS.items()):
        report(number / len(FORMATS), f"{name}: {format}")
        rows.append({"format": format} | _ours(scene, folder / f"ours.{suffix}", options, judge, settings))
        if format in THEIRS:
            rows += [{"format": format} | row for row in _theirs(source, format, folder, judge, settings)]
    return {"how": HOW, "gaussians": len(scene), "sh_degree": scene.sh_degree, "rows": rows}


def _ours(scene: SplatScene, path: Path, options: dict[str, int], judge: Judge, settings: Settings) -> dict[str, Any]:
    # The first write of a format loads its module and its compiled code.
    write_scene(thinned(scene), path, **options)
    writing = timed(lambda: write_scene(scene, path, **options), min(settings.repeats, 3))
    read_scene(path)
    reading = timed(lambda: read_scene(path), settings.repeats)
    return {"method": "ours", "write": writing, "read": reading, "bytes": scene_bytes(path)} | quality(
        judge, read_scene(path)
    )


def _theirs(source: Path, format: str, folder: Path, judge: Judge, settings: Settings) -> list[dict[str, Any]]:
    """One row, or none without splat-transform."""
    if format == "sog" and judge.original.sh_degree and settings.splat_transform is not None:
        failed = "not tried: see the section on size for SOG with spherical harmonics"
        return [{"method": "splat-transform", "failed": failed}]
    return peer_rows(settings, "splat-transform", partial(_written_by_them, source, format, folder, judge))


def _written_by_them(
    source: Path, format: str, folder: Path, judge: Judge, splat_transform: Callable[..., Process]
) -> dict[str, Any]:
    suffix = FORMATS[format][0]
    path = folder / f"theirs.{suffix}"
    done = splat_transform(source, *THEIRS[format], target=path)
    written = read_scene(path, spz_axes="RDF" if suffix == "spz" else None)
    times = {"seconds": done.seconds, "own_seconds": done.own_seconds}
    return times | {"bytes": scene_bytes(path)} | quality(judge, written)


def _large_ply(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    """Reading 500,000 Gaussians of degree 3 from an uncompressed PLY."""
    report(0.0, "large PLY: making it")
    path, count = folder / "large.ply", 5000 if settings.quick else 500_000
    write_scene(bonsai(count), path)
    report(0.7, "large PLY: reading it")
    memory, _, _ = in_own_process("read", path, limit_seconds=settings.limit_seconds)
    return {"gaussians": count, "sh_degree": 3, "read": timed(lambda: read_scene(path), settings.repeats)} | memory
