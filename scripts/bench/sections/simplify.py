"""Fewer Gaussians: ours against splat-transform's decimation at equal counts, and selection alone beside both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jobs import in_own_process, peer_rows, scoring_views, simplify_file, warm_up
from parts import Job
from peers import Process
from settings import Settings, load, quality

from compress3d.splats import read_scene
from compress3d.splats.evaluate import Judge
from compress3d.splats.formats import write_scene
from compress3d.splats.importance import OpacityArea, RayContribution, Spectral, Visibility
from compress3d.splats.merge import Merge
from compress3d.splats.rasterize.contributions import RayContributions, ray_contributions
from compress3d.splats.scene import SplatScene
from secateur.allocation import Budget, allocate
from secateur.console import Report
from secateur.importance.random import Random
from secateur.units import Criterion

DECIMATIONS = {"splat-transform": "--decimate", "splat-transform adaptive": "--decimate-adaptive"}

SELECTIONS: dict[str, Criterion] = {
    "random": Random(),
    "opacity x area": OpacityArea(),
    "contribution sum": RayContribution("sum"),
    "visibility": Visibility(),
    "spectral": Spectral(),
}

PROTOTYPE = {
    "origin": "quoted from the issue that asked for merging: the prototype's PSNR in dB on the same held-out views",
    "shares": [0.5, 0.25, 0.1],
    "merging guided by visibility": {
        "playbot": [38.2, 31.8, 26.3],
        "biker": [40.8, 34.2, 29.0],
        "plant": [40.9, 35.6, 31.0],
    },
    "+ colour refit": {
        "playbot": [None, 33.2, 28.0],
        "biker": [42.4, 35.8, 30.3],
        "plant": [42.2, 36.7, 32.1],
    },
}

HOW = (
    "Both read and write the same uncompressed PLY; quality is that of the written files, on the held-out views. "
    "seconds: ours in process (read, sample views, simplify, write) with numba's compiled code loaded; theirs the "
    "whole process. process_seconds: ours as a whole process too, imports and loading of cached compiled code "
    "included. own_seconds: what splat-transform itself prints."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a scene."""
    return {name: partial(_scene, name, settings) for name in settings.scenes}


def _scene(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene, judge = load(name, settings)
    source = folder / "source.ply"
    write_scene(scene, source)
    report(0.0, f"{name}: warming up")
    warm_up(scene)
    cameras = scoring_views(scene)
    contributions = ray_contributions(scene, cameras)
    rows = []
    for number, share in enumerate(settings.shares):
        done = number / len(settings.shares)
        report(done, f"{name} at {share:.0%}: splat-transform")
        theirs = [
            row
            for method, action in DECIMATIONS.items()
            for row in peer_rows(settings, method, partial(_theirs, source, action, share, folder, judge))
        ]
        counts = {row["gaussians"] for row in theirs if "gaussians" in row}
        count = min(counts, default=max(1, int(len(scene) * share)))
        report(done + 0.4 / len(settings.shares), f"{name} at {share:.0%}: ours")
        ours = _ours(source, count, folder, judge, settings)
        report(done + 0.7 / len(settings.shares), f"{name} at {share:.0%}: selection")
        merged = Merge()(scene, count, contributions.sum.numpy(), cameras)
        merging = {"method": "ours, merging only"} | quality(judge, merged)
        selected = _selections(scene, count, contributions, judge)
        rows += [{"share": share} | row for row in (ours, *theirs, merging, *selected)]
    return {
        "how": HOW,
        "gaussians": len(scene),
        "sh_degree": scene.sh_degree,
        "scored_on_views": len(cameras),
        "judged_on_views": len(judge.cameras),
        "rows": rows,
        "reference": PROTOTYPE,
    }


def _ours(source: Path, count: int, folder: Path, judge: Judge, settings: Settings) -> dict[str, Any]:
    target = folder / "ours.ply"
    _, whole, peak = in_own_process("simplify", source, target, count, limit_seconds=settings.limit_seconds)
    steps = simplify_file(source, target, count)
    return {
        "method": "ours",
        "seconds": sum(steps.values()),
        "seconds_by_step": steps,
        "process_seconds": whole,
        "peak_bytes": peak,
    } | quality(judge, read_scene(target))


def _theirs(
    source: Path, action: str, share: float, folder: Path, judge: Judge, splat_transform: Callable[..., Process]
) -> dict[str, Any]:
    target = folder / "theirs.ply"
    done = splat_transform(source, action, f"{share:.0%}", target=target)
    times = {"seconds": done.seconds, "own_seconds": done.own_seconds, "peak_bytes": done.peak_bytes}
    return times | quality(judge, read_scene(target))


def _selections(scene: SplatScene, count: int, contributions: RayContributions, judge: Judge) -> list[dict[str, Any]]:
    """What is left when the best by each criterion stay as they are."""
    rows = []
    for method, criterion in SELECTIONS.items():
        keep = allocate(criterion.score(scene, contributions), scene.groups(), Budget(limit=count))
        rows.append({"method": f"selection: {method}"} | quality(judge, scene.cut(keep)))
    return rows
