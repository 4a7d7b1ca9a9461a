"""Work that is measured in process and in a process of its own: python scripts/bench/jobs.py JOB ARGUMENTS...

simplify SOURCE TARGET COUNT, read SOURCE, render SOURCE SIZE ours|prototype; prints a JSON record.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from meters import peak_bytes_above
from peers import PeerError, Process, load_prototype, run_process
from settings import Settings

from compress3d.cameras import Cameras
from compress3d.splats import read_scene
from compress3d.splats.compress import VIEWS
from compress3d.splats.evaluate import RESOLUTION
from compress3d.splats.formats import write_scene
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from compress3d.splats.simplify import simplify
from compress3d.splats.views import orbit, sample_views, split_views
from secateur.report.record import Steps

Draw = Callable[[int], np.ndarray]
"""Image (H, W, 3) of one view, by its number."""


def peer_rows(
    settings: Settings, method: str, measure: Callable[[Callable[..., Process]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The row of a method of splat-transform, or why it has no figures; no row where splat-transform is not installed.

    Args:
        settings: of this run.
        method: what the row is called.
        measure: gets splat-transform under the run's time limit, and gives the row's figures.
    """
    if settings.splat_transform is None:
        return []
    try:
        return [{"method": method} | measure(partial(settings.splat_transform, limit_seconds=settings.limit_seconds))]
    except PeerError as error:
        return [{"method": method, "failed": str(error)}]


def scoring_views(scene: SplatScene) -> Cameras:
    """The views that `compress` looks through when it is given none."""
    return split_views(sample_views(scene, VIEWS, RESOLUTION, RESOLUTION, seed=0))[0]


def simplify_file(source: Path, target: Path, count: int) -> dict[str, float]:
    """Read, simplify, write; returns the seconds of each step."""
    steps = Steps()
    with steps("read"):
        scene = read_scene(source)
    with steps("sample views"):
        cameras = scoring_views(scene)
    small, inner = simplify_by_step(scene, count, cameras)
    with steps("write"):
        write_scene(small, target)
    return steps.seconds | inner


def simplify_by_step(scene: SplatScene, count: int, cameras: Cameras) -> tuple[SplatScene, dict[str, float]]:
    """`simplify`, and the seconds of its steps."""
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def progress(done: float, step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[step] = seconds.get(step, 0.0) + now - last
        last = now

    return simplify(scene, count, cameras, progress=progress), seconds


def warm_up(scene: SplatScene) -> None:
    """Load all compiled code that simplifying this scene runs."""
    few = thinned(scene)
    simplify(few, max(1, len(few) // 4), scoring_views(few)[:2])


def thinned(scene: SplatScene) -> SplatScene:
    """About 2000 Gaussians from all over the scene: enough to load all code that works on the whole."""
    return scene.select(torch.arange(0, len(scene), max(1, len(scene) // 2000)))


def draw_ours(scene: SplatScene, cameras: Cameras) -> Draw:
    return lambda index: render(scene, cameras[index])[0].numpy()


def draw_prototype(prototype: ModuleType, scene: SplatScene, cameras: Cameras) -> Draw:
    """The prototype's face, on the same tensors; it leaves spherical harmonics above degree 2 out."""
    tensors = {name: tensor.numpy() for name, tensor in scene.tensors().items()}
    converted = {
        "means": tensors["means"],
        "quats": tensors["quats"],
        "scales": np.exp(tensors["scales"]),
        "opac": scene.peak_opacities().numpy(),
        "sh0": tensors["sh0"][:, 0],
        "shN": tensors["shN"] if scene.sh_degree else None,
    }

    def draw(index: int) -> np.ndarray:
        K = cameras.Ks[index].numpy()
        viewmat = cameras.viewmats[index].numpy()
        return prototype.render(converted, viewmat, float(K[0, 0]), float(K[1, 1]), cameras.width, cameras.height)

    return draw


def alternate(draws: dict[str, Draw], views: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds a frame of each, taking turns so that what disturbs the machine disturbs all; one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in draws}
    for repeat in range(repeats + 1):
        for name, draw in draws.items():
            start = time.perf_counter()
            for view in range(views):
                draw(view)
            if repeat:
                times[name].append((time.perf_counter() - start) * 1000 / views)
    return {
        name: {"minimum_ms": min(each), "median_ms": statistics.median(each), "repeats": repeats, "frames": views}
        for name, each in times.items()
    }


def in_own_process(*arguments: object, limit_seconds: float) -> tuple[dict[str, Any], float, int]:
    """Run a job of this file in a process of its own: its record, wall seconds and peak memory of the whole process."""
    done = run_process([sys.executable, __file__, *map(str, arguments)], limit_seconds)
    return json.loads(done.output.strip().splitlines()[-1]), done.seconds, done.peak_bytes


def _read(path: Path) -> dict[str, Any]:
    scenes = []
    above = peak_bytes_above(lambda: scenes.append(read_scene(path)))
    held = sum(4 * tensor.numel() for tensor in scenes[0].tensors().values())
    return {"peak_bytes_above": above, "scene_bytes": held, "file_bytes": path.stat().st_size}


def _render(path: Path, size: int, who: str) -> dict[str, Any]:
    scene = read_scene(path)
    cameras = orbit(scene, 2, size, size)
    few = thinned(scene)
    prototype = load_prototype() if who == "prototype" else None

    def draw(part: SplatScene) -> Draw:
        return draw_prototype(prototype, part, cameras) if prototype else draw_ours(part, cameras)

    draw(few)(0)
    whole = draw(scene)
    return {"peak_bytes_above": peak_bytes_above(lambda: whole(1))}


def main(job: str, *arguments: str) -> None:
    """Run a job and print its record."""
    path = Path(arguments[0])
    record: dict[str, Any]
    if job == "simplify":
        record = dict(simplify_file(path, Path(arguments[1]), int(arguments[2])))
    elif job == "read":
        record = _read(path)
    elif job == "render":
        record = _render(path, int(arguments[1]), arguments[2])
    else:
        raise ValueError(f"job must be simplify, read or render, got {job}")
    print(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
