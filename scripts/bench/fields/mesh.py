"""Section `mesh`: the surface of the chair's field, pruned by the chair's silhouettes, and by decimation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from meshes.pictures import draw_meshes
from parts import Job
from scipy.spatial import cKDTree
from torch import Tensor

from compress3d.mesh.compare import silhouette_iou, surface_points
from compress3d.mesh.files import write_mesh
from compress3d.mesh.importance import Silhouettes
from compress3d.mesh.isosurface import isosurface
from compress3d.mesh.library import decimated
from compress3d.mesh.mesh import Mesh
from compress3d.mesh.topology import Shape, TopologyRefinement
from compress3d.nerf import points
from compress3d.nerf.field import Field
from fields.chair import trained_field
from fields.settings import Settings
from secateur.console import Report, stretch

HOW = (
    "Marching cubes on the density of the chair's trained field at 128^3 points, at the density that makes a grid step "
    "opaque by the part's share. Faces are pruned by the silhouettes of every second training view, and judged by "
    "every second test view: intersection over union, and distance to the points where rays of these views end in the "
    "field (accuracy: from the mesh to them; completeness: from them to the mesh; Chamfer: their mean), world units. "
    "Faces that no view can see are far from all such points."
)
LEVELS = {"half opaque": 0.5, "hardly opaque": 0.02}
"""Part -> opacity of a grid step on the surface."""


def jobs(settings: Settings) -> dict[str, Job]:
    """A part for each density."""
    return {name: partial(_surface, settings, name, opacity) for name, opacity in LEVELS.items()}


def _surface(settings: Settings, name: str, opacity: float, report: Report, folder: Path) -> dict[str, Any]:
    field = trained_field(settings, stretch(report, 0.0, 0.3))
    capture, resolution = settings.capture, 32 if settings.quick else 128
    train, test = Silhouettes.of(capture)[::2], Silhouettes.of(capture, torch.tensor(settings.judging))
    count = 500 if settings.quick else 50_000
    seen = points.surface_points(field, test.cameras, count).xyz
    rows: list[dict[str, Any]] = []
    meshes: dict[str, Mesh] = {}

    def row(method: str, make: Callable[[], Mesh]) -> Mesh:
        report(0.3 + len(rows) / 10, method)
        start = time.perf_counter()
        mesh = make()
        seconds = time.perf_counter() - start
        rows.append({"method": method, "seconds": seconds, **_judged(mesh, seen, test, folder)})
        meshes[method] = mesh
        return mesh

    whole = row("extracted", lambda: extracted(field, resolution, opacity))
    small = row("silhouettes", lambda: TopologyRefinement().prune(whole, train)[0])
    row("quadric decimation, as many", lambda: decimated(whole, len(small)))
    quarter = max(4, len(small) // 4)
    row("silhouettes, then decimation", lambda: decimated(small, quarter))
    row("quadric decimation, as far", lambda: decimated(whole, quarter))
    settings.images.mkdir(parents=True, exist_ok=True)
    draw_meshes(meshes, test, settings.images / f"nerf_mesh_{name.replace(' ', '_')}.png")
    return {"how": HOW, "opacity": opacity, "resolution": resolution, "points": len(seen), "rows": rows}


@torch.no_grad()
def extracted(field: Field, resolution: int, opacity: float) -> Mesh:
    """The surface of a field, in world units; cells that it found empty are empty.

    Args:
        field: with densities per side of its box.
        resolution: grid points along each axis.
        opacity: of a grid step where the surface is.

    Raises:
        ValueError: it is nowhere so dense.
    """
    along = torch.linspace(0, 1, resolution)
    grid = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=3).reshape(-1, 3)
    inside = field.occupancy.occupied()[field.occupancy.cells_of(grid)]
    densities = torch.zeros(len(grid))
    densities[inside] = torch.cat([field.densities(field.features(part)) for part in grid[inside].split(1 << 16)])
    # Opacities go from 0 to 1: between two densities of very different size they find a better place.
    steps = 1 - torch.exp(-densities / (resolution - 1))
    x, y, z = field.box.low
    high = (x + field.box.side, y + field.box.side, z + field.box.side)
    return isosurface(steps.reshape(resolution, resolution, resolution), (x, y, z), high, opacity)


def _judged(mesh: Mesh, seen: Tensor, test: Silhouettes, folder: Path) -> dict[str, Any]:
    overlap = silhouette_iou(mesh, test)
    accuracy, completeness = distances(mesh, seen)
    return {
        **asdict(Shape.of(mesh)),
        "bytes": write_mesh(mesh, folder / "mesh.ply"),
        "accuracy": accuracy,
        "completeness": completeness,
        "chamfer": math.fsum((accuracy, completeness)) / 2,
        "iou_mean": float(overlap.mean()),
        "iou_least": float(torch.min(overlap)),
    }


def distances(mesh: Mesh, seen: Tensor) -> tuple[float, float]:
    """Mean distance from points on the mesh to the nearest of `seen` (N, 3), and the other way round."""
    own, other = surface_points(mesh, len(seen)).numpy(), seen.numpy()
    return float(cKDTree(other).query(own)[0].mean()), float(cKDTree(own).query(other)[0].mean())
