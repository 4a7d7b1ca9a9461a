"""Visibility lists (RadSplat): how many Gaussians the clusters of cameras draw, what it costs in quality, and frames a
second beside the whole scene; on a scanned object, and on four closed rooms, where most is hidden from everywhere."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import alternate, draw_ours
from parts import Job
from settings import Settings, load

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import look_at, orbit
from compress3d.splats.visibility import VisibilityLists, save_lists
from secateur.console import Report
from secateur.metrics.image import psnr

SIZE = 400
CLUSTERS = 16
THRESHOLDS = (0.0, 0.001, 0.01)
CAMERAS = 200
"""On closed paths. Each fourth is walked past only: lists are made through the others."""

ROOM, HEIGHT = 4.0, 2.5
"""Metres along each of four rooms, and below their ceilings."""
ROOM_GAUSSIANS = 200_000
SCANNED = "plant"

HOW = (
    f"{CLUSTERS} clusters of {CAMERAS - CAMERAS // 4} cameras on closed paths. 'learnt' is on those cameras, 'walked' "
    f"on {CAMERAS // 4} between them, which are timed too, cluster by cluster: the gathering where the cluster changes "
    "is in the time. Psnr is against the whole scene. Whole scene and lists take turns."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """The scanned object, where it is among the scenes, and the rooms."""
    scanned: dict[str, Job] = {SCANNED: partial(_scanned, settings)} if SCANNED in settings.scenes else {}
    return scanned | {"rooms": partial(_rooms, settings)}


def rooms(count: int, seed: int = 0) -> SplatScene:
    """Two by two rooms without doors, with a few balls in each; about `count` Gaussians."""
    random = np.random.default_rng(seed)
    side, surfaces = 2 * ROOM, []
    walls = [(axis, at, side * HEIGHT) for axis in (0, 2) for at in (0.0, ROOM, side)]
    planes = [*walls, (1, 0.0, side * side), (1, HEIGHT, side * side)]
    spacing = math.sqrt(sum(area for _, _, area in planes) / (0.8 * count))
    for axis, at, area in planes:
        points = random.random((round(area / spacing**2), 3)) * (side, HEIGHT, side)
        points[:, axis] = at
        sizes = np.full(points.shape, 0.8 * spacing)
        sizes[:, axis] *= 0.1
        surfaces.append((points, sizes, random.random(3)))
    for x in (0.0, ROOM):
        for z in (0.0, ROOM):
            for _ in range(5):
                outward = random.normal(size=(count // 100, 3))
                outward *= 0.4 / np.linalg.norm(outward, axis=1, keepdims=True)
                middle = random.uniform(0.6, ROOM - 0.6, 3) * (1, 0, 1) + (x, HEIGHT - 0.4, z)
                surfaces.append((middle + outward, np.full(outward.shape, 0.02), random.random(3)))
    points, sizes = (np.concatenate([surface[part] for surface in surfaces]) for part in (0, 1))
    colors = np.concatenate([np.tile(surface[2], (len(surface[0]), 1)) for surface in surfaces])
    colors = np.clip(colors + random.normal(0, 0.1, colors.shape), 0, 1)
    return SplatScene(
        means=torch.from_numpy(points).float(),
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(points), 1),
        scales=torch.from_numpy(np.log(sizes)).float(),
        opacities=torch.full((len(points),), 3.0),
        sh0=torch.from_numpy((colors - 0.5) / 0.28209479).float()[:, None],
        shN=torch.zeros(len(points), 0, 3),
    )


def within_rooms(count: int, size: int) -> Cameras:
    """Cameras on a circle at eye level in each of the four rooms, a quarter each, that look out of it."""
    angles = 2 * np.pi * np.arange(count) * 4 / count
    room = np.arange(count) * 4 // count
    outward = np.stack([np.cos(angles), np.zeros(count), np.sin(angles)], axis=1)
    middles = np.stack([(room % 2 + 0.5) * ROOM, np.ones(count), (room // 2 + 0.5) * ROOM], axis=1)
    focal = 0.5 * size / math.tan(math.radians(35))
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    viewmats = look_at(middles + 0.7 * outward, middles + 2 * outward + (0.0, 0.3, 0.0))
    return Cameras(viewmats, K.expand(count, 3, 3), size, size)


def _scanned(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene, _ = load(SCANNED, settings)
    size, count = _sizes(settings)
    return _measure(scene, orbit(scene, count, size, size), settings, report, folder)


def _rooms(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    size, count = _sizes(settings)
    scene = rooms(5_000 if settings.quick else ROOM_GAUSSIANS)
    return _measure(scene, within_rooms(count, size), settings, report, folder)


def _sizes(settings: Settings) -> tuple[int, int]:
    """Pixels a side, and cameras."""
    return (100, 24) if settings.quick else (SIZE, CAMERAS)


def _measure(scene: SplatScene, cameras: Cameras, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    fourth = torch.arange(len(cameras)) % 4 == 2
    learnt, walked = cameras[~fourth], cameras[fourth]
    rows = []
    whole = render(scene, learnt)
    for number, threshold in enumerate(THRESHOLDS):
        report(number / len(THRESHOLDS), f"lists of what exceeds {threshold}")
        lists = VisibilityLists.of(scene, learnt, CLUSTERS, threshold=threshold)
        path = walked[lists.nearest(walked).argsort()]
        draws = {"whole": draw_ours(scene, path), "lists": _draw(lists, path)}
        times = alternate(draws, len(path), min(settings.repeats, 3))
        counts = lists.counts().float()
        rows.append(
            {
                "threshold": threshold,
                "clusters": len(lists),
                "mean_gaussians": float(counts.mean()),
                "most_gaussians": int(counts.max()),
                "list_bytes": save_lists(folder / "lists", lists),
                "learnt": _differences(lists.render(learnt), whole),
                "walked": _differences(lists.render(path), render(scene, path)),
                "times": times,
                "frames_per_second": {who: 1000 / each["median_ms"] for who, each in times.items()},
            }
        )
    return {"how": HOW, "gaussians": len(scene), "size": learnt.width, "cameras": len(learnt), "rows": rows}


def _draw(lists: VisibilityLists, cameras: Cameras) -> Any:
    return lambda index: lists.render(cameras[index])[0].numpy()


def _differences(images: torch.Tensor, whole: torch.Tensor) -> dict[str, float]:
    largest = (images.clamp(0, 1) - whole.clamp(0, 1)).abs().amax(dim=-1)
    eight_bits = [(one.clamp(0, 1) * 255).round() for one in (images, whole)]
    return {
        "psnr": float(psnr(images, whole).clamp_max(120.0).mean()),
        "largest": float(largest.max()),
        "share_of_pixels_over_1_255": float((largest > 1 / 255).float().mean()),
        "share_of_pixels_equal_to_8_bits": float((eight_bits[0] == eight_bits[1]).all(dim=-1).float().mean()),
    }
