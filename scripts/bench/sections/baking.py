"""Gaussians baked to texture maps around a sphere: bytes and quality beside our .sog at the same count."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job
from settings import Settings, load, quality

from compress3d.splats import read_scene
from compress3d.splats.baking import bake, read_baked, write_baked
from compress3d.splats.evaluate import Judge
from compress3d.splats.formats import write_scene
from compress3d.splats.samples import chair
from compress3d.splats.scene import SplatScene
from compress3d.splats.simplify import simplify
from compress3d.splats.sizes import scene_bytes
from compress3d.splats.views import sample_views, split_views
from secateur.console import Report

SHAPES = ((256, 512, 1), (256, 512, 4), (256, 512, 16), (512, 1024, 4))
"""Height, width and layers of the maps."""

HOW = (
    "baked: our file of maps around the scene's middle, read back. Two files of as many Gaussians beside it: "
    "the same Gaussians as .sog, which is what the maps themselves cost; and all simplified (merged where it is seen "
    "least, and refitted), as .sog, which is what baking's own merging costs. merged: Gaussians without a layer. "
    "Quality on held-out views, against the scene; the chair's are sampled, as the shared ones are not of it. "
    "seconds: baking and writing the baked file; simplifying and writing."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """The chair that comes with the package, and the shared plant where it is asked for."""
    scenes = ("chair", *(name for name in settings.scenes if name == "plant"))
    return {name: partial(_scene, name, settings) for name in scenes}


def _scene(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene, judge = _chair(settings) if name == "chair" else load(name, settings)
    shapes = SHAPES[:1] if settings.quick else SHAPES
    write_scene(scene, folder / "whole.sog")
    rows = [{"method": "sog of all"} | _file(folder / "whole.sog", judge, read_scene(folder / "whole.sog"))]
    for number, shape in enumerate(shapes):
        report(number / len(shapes), f"{name}: maps of {shape[0]}x{shape[1]} in {shape[2]} layers")
        rows += [
            {"height": shape[0], "width": shape[1], "layers": shape[2]} | row for row in _maps(judge, shape, folder)
        ]
    return {"how": HOW, "gaussians": len(scene), "sh_degree": scene.sh_degree, "rows": rows}


def _chair(settings: Settings) -> tuple[SplatScene, Judge]:
    scene = chair()
    _, heldout = split_views(sample_views(scene, 4 if settings.quick else 20, 400, 400))
    return scene, Judge(scene, heldout)


def _maps(judge: Judge, shape: tuple[int, int, int], folder: Path) -> list[dict[str, Any]]:
    scene, path = judge.original, folder / "maps.baked"
    start = time.perf_counter()
    baked = bake(scene, resolution=shape[:2], layers=shape[2])
    write_baked(baked, path)
    seconds = time.perf_counter() - start
    write_scene(baked.decode(), folder / "same.sog")
    facts = {"method": "baked", "merged": baked.merged, "filled": float(baked.mask.double().mean()), "seconds": seconds}
    rows = [facts | _file(path, judge, read_baked(path).decode())]
    rows.append({"method": "same as .sog"} | _file(folder / "same.sog", judge, read_scene(folder / "same.sog")))
    start = time.perf_counter()
    views, _ = split_views(sample_views(scene, 32, 400, 400, seed=1))
    write_scene(simplify(scene, len(baked.texels), views), folder / "simplified.sog")
    seconds = time.perf_counter() - start
    simplified = _file(folder / "simplified.sog", judge, read_scene(folder / "simplified.sog"))
    return [*rows, {"method": "simplified, .sog", "seconds": seconds} | simplified]


def _file(path: Path, judge: Judge, scene: SplatScene) -> dict[str, Any]:
    return {"bytes": scene_bytes(path)} | quality(judge, scene)
