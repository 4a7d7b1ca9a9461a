"""Gaussians baked to texture maps around a sphere: bytes and quality beside our .sog at the same count."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job
from settings import Settings, load, quality
from torch import Tensor

from compress3d.splats import read_scene
from compress3d.splats.baking import BakedScene, bake, read_baked, write_baked
from compress3d.splats.evaluate import Judge
from compress3d.splats.formats import write_scene
from compress3d.splats.rasterize.contributions import observe
from compress3d.splats.samples import chair
from compress3d.splats.scene import SplatScene
from compress3d.splats.simplify import simplify
from compress3d.splats.sizes import scene_bytes
from compress3d.splats.views import sample_views, split_views
from secateur.console import Report

HEIGHT, WIDTH = 256, 512
LAYERS = (1, 4, 16)
SIMPLIFIED = 0.5
VIEWS = 32

HOW = (
    "baked: our file of 256x512 texels in so many layers around the scene's middle, weighted by what views see, read "
    "back; merged: Gaussians that had no layer. as .sog: the same Gaussians in the other file, so that the bytes tell "
    "what maps cost. simplified: merged where it is seen least, and refitted, to half of the Gaussians, then either "
    "file. Quality on held-out views, against the scene; the chair's are sampled, as the shared ones are not of it. "
    "seconds: of baking and writing."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """The chair that comes with the package, and the shared plant where it is asked for."""
    scenes = ("chair", *(name for name in settings.scenes if name == "plant"))
    return {name: partial(_scene, name, settings) for name in scenes}


def _scene(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene, judge = _chair(settings) if name == "chair" else load(name, settings)
    report(0.0, f"{name}: what views see")
    views, _ = split_views(sample_views(scene, 4 if settings.quick else VIEWS, 400, 400, seed=1))
    observation = observe(scene, views)
    rows = [{"method": "all, .sog"} | _sog(scene, folder, judge)]
    for number, layers in enumerate(LAYERS):
        report(0.3 + 0.1 * number, f"{name}: maps in {layers} layers")
        baked, row = _baked(scene, layers, observation.weights, folder, judge)
        rows += [{"method": "baked"} | row]
        rows += [{"method": "baked, as .sog", "layers": layers} | _sog(baked.decode(), folder, judge)]
    report(0.6, f"{name}: simplified")
    half = simplify(scene, round(SIMPLIFIED * len(scene)), views, observation=observation)
    rows += [{"method": "simplified, .sog"} | _sog(half, folder, judge)]
    rows += [{"method": "simplified, baked"} | _baked(half, LAYERS[-1], observe(half, views).weights, folder, judge)[1]]
    return {"how": HOW, "gaussians": len(scene), "sh_degree": scene.sh_degree, "rows": rows}


def _chair(settings: Settings) -> tuple[SplatScene, Judge]:
    scene = chair()
    _, heldout = split_views(sample_views(scene, 4 if settings.quick else 20, 400, 400))
    return scene, Judge(scene, heldout)


def _baked(
    scene: SplatScene, layers: int, weights: Tensor, folder: Path, judge: Judge
) -> tuple[BakedScene, dict[str, Any]]:
    path = folder / "maps.baked"
    start = time.perf_counter()
    baked = bake(scene, None, (HEIGHT, WIDTH), layers, weights)
    write_baked(baked, path)
    facts = {
        "layers": layers,
        "merged": baked.merged,
        "filled": float(baked.mask.double().mean()),
        "seconds": time.perf_counter() - start,
        "bytes": scene_bytes(path),
    }
    return baked, facts | quality(judge, read_baked(path).decode())


def _sog(scene: SplatScene, folder: Path, judge: Judge) -> dict[str, Any]:
    path = folder / "scene.sog"
    write_scene(scene, path)
    return {"bytes": scene_bytes(path)} | quality(judge, read_scene(path))
