"""The chair's coloured voxels, asked for the green of its seat: what coarse levels save, and what completion mends."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from meters import timed
from parts import Job

from compress3d.voxels.colours import coloured_voxels
from compress3d.voxels.pruning import QueryPruning
from compress3d.voxels.pyramid import VoxelPyramid
from compress3d.voxels.query import NearQuery
from meshes.pictures import draw_points
from meshes.settings import HIGH, LOW, Settings
from secateur.console import Report

GREENS, RADIUS = ((0.2, 0.6, 0.2), (0.45, 0.7, 0.35)), 0.15
"""RGB of the seat's cloth, in shade and in light, and how far from them a colour may be."""

LEAST = 0.5
"""Relevance of a fine voxel that is asked for."""

METHODS = {
    "finest level alone": QueryPruning((LEAST,)),
    "coarse to fine, loose": QueryPruning((0.02, 0.05, 0.15, LEAST)),
    "loose, completed": QueryPruning((0.02, 0.05, 0.15, LEAST), completion=LEAST, reach=2),
    "coarse to fine, strict": QueryPruning((0.1, 0.2, 0.35, LEAST)),
    "strict, completed": QueryPruning((0.1, 0.2, 0.35, LEAST), completion=LEAST, reach=2),
}


def jobs(settings: Settings) -> dict[str, Job]:
    """One part: its rows share the voxels."""
    return {"green": lambda report, folder: green(settings, report, folder)}


def green(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    """How many voxels are asked about, and how many of those that are green are found."""
    report(0.0, "colouring voxels")
    resolution = settings.resolution
    voxels = coloured_voxels(settings.capture, LOW, HIGH, resolution)
    query = NearQuery(torch.tensor(GREENS), RADIUS)
    wanted = query(voxels.features) >= LEAST
    rows, found = [], {"all": voxels}
    for method, pruning in METHODS.items():
        report(len(rows) / len(METHODS), method)
        target = VoxelPyramid.of(voxels, len(pruning.thresholds))
        keep, record = pruning.choose(target, query)
        mask = keep["level 0"]
        right = int((mask & wanted).sum())
        rows.append(
            {
                "method": method,
                **asdict(record),
                "recall": right / max(1, int(wanted.sum())),
                "precision": right / max(1, int(mask.sum())),
                "asked_share": sum(record.asked) / len(voxels),
                "time": timed(lambda pruning=pruning, target=target: pruning.choose(target, query), 3),
            }
        )
        found[method] = target.cut(keep).levels[0]
    shown = ("all", "finest level alone", "coarse to fine, strict", "strict, completed")
    camera = settings.capture.cameras[settings.capture.test[len(settings.capture.test) // 4][None]]
    step = (HIGH[0] - LOW[0]) / (resolution - 1)
    clouds = {name: (torch.tensor(LOW) + step * found[name].coords, found[name].features) for name in shown}
    draw_points(clouds, camera, step, settings.images / "voxels_green.png")
    return {"rows": rows, "voxels": len(voxels), "wanted": int(wanted.sum())}
