"""Smaller files: our .sog against splat-transform's decimation and .sog, at no more bytes than theirs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jobs import peer_rows
from parts import Job
from peers import Process
from settings import Settings, load, quality

from compress3d.splats import read_scene
from compress3d.splats.compress import Budget, Compressor
from compress3d.splats.evaluate import Judge
from compress3d.splats.formats import write_scene
from compress3d.splats.sizes import scene_bytes
from secateur.console import Report
from secateur.report.record import to_json

HOW = (
    "Theirs: --decimate, then .sog on the CPU; seconds are those of both processes. Ours: compress to their bytes at "
    "most, a search over counts whose every trial is simplified and written, then the default recovery of the one that "
    "fits, so its seconds are those of all that; where they did not finish, or are not installed, to the same count. "
    "Quality is that of the .sog read back, on the held-out views."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a scene."""
    return {name: partial(_scene, name, settings) for name in settings.scenes}


def _scene(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene, judge = load(name, settings)
    source = folder / "source.ply"
    write_scene(scene, source)
    compressor = Compressor(scene)
    rows: list[dict[str, Any]] = []
    # From the smallest: where it takes them too long, the larger ones would, too.
    shares = settings.shares[::-1]
    for number, share in enumerate(shares):
        report(number / len(shares), f"{name} at {share:.0%}: splat-transform's .sog")
        failed = [row["share"] for row in rows if "failed" in row]
        if failed:
            theirs = [{"method": "splat-transform", "failed": f"not tried, because of the failure at {failed[0]:.0%}"}]
        else:
            theirs = peer_rows(settings, "splat-transform", partial(_theirs, source, share, folder, judge))
        rows += [{"share": share} | row for row in theirs]
        limit = theirs[0].get("bytes") if theirs else None
        budget = Budget(size_bytes=limit) if limit else Budget(keep=share)
        report((number + 0.5) / len(shares), f"{name} at {share:.0%}: our .sog")
        rows.append({"share": share} | _ours(compressor, budget, folder / "ours.sog", judge))
    return {"how": HOW, "gaussians": len(scene), "sh_degree": scene.sh_degree, "rows": rows}


def _ours(compressor: Compressor, budget: Budget, path: Path, judge: Judge) -> dict[str, Any]:
    start = time.perf_counter()
    _, record = compressor.compress(budget, path)
    return {
        "method": "ours",
        "seconds": time.perf_counter() - start,
        "seconds_by_step": record.seconds,
        "trials": to_json(record.trials),
        "bytes": scene_bytes(path),
    } | quality(judge, read_scene(path))


def _theirs(
    source: Path, share: float, folder: Path, judge: Judge, splat_transform: Callable[..., Process]
) -> dict[str, Any]:
    decimated, path = folder / "theirs.ply", folder / "theirs.sog"
    first = splat_transform(source, "--decimate", f"{share:.0%}", target=decimated)
    second = splat_transform(decimated, target=path)
    times = {"seconds": first.seconds + second.seconds, "sog_seconds": second.seconds, "peak_bytes": second.peak_bytes}
    return times | {"bytes": scene_bytes(path)} | quality(judge, read_scene(path))
