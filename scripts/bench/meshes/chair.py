"""A damaged mesh of the chair, pruned by the chair's silhouettes and by others, judged on views that none has seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from parts import Job
from torch import Tensor

from compress3d.mesh.compare import chamfer_distance, silhouette_iou
from compress3d.mesh.files import write_mesh
from compress3d.mesh.importance import SilhouetteCoverage, Silhouettes
from compress3d.mesh.isosurface import visual_hull
from compress3d.mesh.library import decimated
from compress3d.mesh.mesh import FACES, Mesh
from compress3d.mesh.silhouette import soft_silhouettes
from compress3d.mesh.topology import Shape, TopologyRefinement
from meshes.damage import damaged
from meshes.pictures import draw_meshes
from meshes.settings import HIGH, LOW, Settings
from secateur.allocation import Budget, allocate
from secateur.console import Report
from secateur.importance import MaskTaylor, Random


def jobs(settings: Settings) -> dict[str, Job]:
    """One part: its rows share the hull and the damage."""
    return {"pruning": lambda report, folder: pruning(settings, report, folder)}


def pruning(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    """Faces, distance to the undamaged hull and silhouettes on held-out views, before and after."""
    capture = settings.capture
    train, test = Silhouettes.of(capture), Silhouettes.of(capture, capture.test)
    report(0.0, "carving")
    hull = visual_hull(train, LOW, HIGH, settings.resolution)
    whole, added = damaged(hull, (LOW, HIGH))
    rows: list[dict[str, Any]] = []
    meshes: dict[str, Mesh] = {}

    def row(method: str, make: Callable[[], Mesh], **facts: Any) -> Mesh:
        report(len(rows) / 10, method)
        start = time.perf_counter()
        mesh = make()
        seconds = time.perf_counter() - start
        rows.append({"method": method, "seconds": seconds, **judged(mesh, hull, test, settings, folder), **facts})
        meshes[method] = mesh
        return mesh

    went: dict[str, int] = {}

    def refined() -> Mesh:
        mesh, counts = TopologyRefinement().prune(whole, train)
        went.update(counts)
        return mesh

    row("visual hull", lambda: hull)
    row("damaged", lambda: whole)
    small = row("silhouettes", refined, went=went)
    row("silhouettes, smoothed", lambda: TopologyRefinement(smoothing=3).prune(whole, train)[0])
    row("quadric decimation", lambda: decimated(whole, len(small)))
    budget = Budget(limit=len(small))
    row("random faces", lambda: kept(whole, Random(0).score(whole)[FACES], budget))
    error = ShadowError(train[:: max(1, len(train) // 10)])
    row("mask Taylor", lambda: kept(whole, MaskTaylor("signed").score(whole, error)[FACES], budget))
    quarter = len(small) // 4
    row("silhouettes, then decimation", lambda: decimated(small, quarter))
    row("quadric decimation, as far", lambda: decimated(whole, quarter))
    picture = settings.images / "mesh_chair.png"
    shown = ("damaged", "silhouettes", "silhouettes, then decimation", "quadric decimation, as far")
    draw_meshes({name: meshes[name] for name in shown}, test, picture)
    scores = SilhouetteCoverage().score(hull, train)[FACES]
    return {
        "rows": rows,
        "added": added,
        "views": {"scored": len(train), "judged": len(test), "size": capture.cameras.width},
        "hull_scores": {str(q): float(scores.double().quantile(q)) for q in (0.0, 0.01, 0.1, 0.5)},
        "points": settings.points,
    }


class ShadowError:
    """The squared error of soft silhouettes, view by view: an `Objective`."""

    def __init__(self, silhouettes: Silhouettes) -> None:
        self.silhouettes = silhouettes

    def losses(self, target: Any, /) -> Any:
        for index, alpha in enumerate(self.silhouettes.alphas):
            drawn = soft_silhouettes(target, self.silhouettes.cameras[index], 1.0)[0]
            yield (drawn - alpha).square().mean()


def kept(mesh: Mesh, scores: Tensor, budget: Budget) -> Mesh:
    """The best faces that the budget holds."""
    return mesh.cut(allocate({FACES: scores}, mesh.groups(), budget))


def judged(mesh: Mesh, reference: Mesh, test: Silhouettes, settings: Settings, folder: Path) -> dict[str, Any]:
    """What a row says of a mesh."""
    overlap = silhouette_iou(mesh, test)
    return {
        **asdict(Shape.of(mesh)),
        "bytes": write_mesh(mesh, folder / "mesh.ply"),
        "chamfer": chamfer_distance(mesh, reference, settings.points),
        "iou_mean": float(overlap.mean()),
        "iou_least": float(torch.min(overlap)),
    }
