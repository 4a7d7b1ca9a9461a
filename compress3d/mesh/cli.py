"""What the commands of meshes do, and how they show it. Their arguments are in `commands.py`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from compress3d.captures import read_capture
from compress3d.mesh.cleaning import areas
from compress3d.mesh.compare import silhouette_iou
from compress3d.mesh.files import SUFFIXES, read_mesh, write_mesh
from compress3d.mesh.importance import SilhouetteCoverage, Silhouettes
from compress3d.mesh.mesh import Mesh
from compress3d.mesh.topology import Shape, TopologyRefinement
from secateur.allocation import Budget
from secateur.console import console, progress_bar, result_table
from secateur.quantities import format_bytes, parse_keep
from secateur.report.notebook import table_html
from secateur.report.record import Steps


@dataclass(frozen=True, slots=True)
class MeshInfo:
    """What is in a file.

    Args:
        name: of the file.
        bytes: of the file.
        shape: counts and topology.
        area: of all faces, in square world units.
        low: lowest corner of the box around the vertices.
        high: highest corner.
    """

    name: str
    bytes: int
    shape: Shape
    area: float
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, path: Path, mesh: Mesh) -> MeshInfo:
        """That of a mesh and its file."""
        points = mesh.vertices if len(mesh.vertices) else torch.zeros(1, 3)
        low, high = points.amin(dim=0), points.amax(dim=0)
        area = float(areas(mesh).double().sum())
        return cls(path.name, path.stat().st_size, Shape.of(mesh), area, tuple(low.tolist()), tuple(high.tolist()))


@dataclass(frozen=True, slots=True)
class Pruning:
    """A mesh before and after.

    Args:
        original: the mesh as it was.
        pruned: the mesh that was written.
        removed: faces that went, by reason.
        iou: of silhouettes with the photographs' alpha, before and after; on views that were not scored through where
            the capture holds some out.
        held_out: whether it does.
        views: how many were scored through.
        seconds: by step.
    """

    original: MeshInfo
    pruned: MeshInfo
    removed: dict[str, int]
    iou: tuple[float, float]
    held_out: bool
    views: int
    seconds: dict[str, float]

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        return table_html(pruning_table(self))


def describe_file(file: Path) -> MeshInfo:
    """`secateur mesh info`."""
    return MeshInfo.of(file, read_mesh(file))


def prune_file(
    file: Path,
    capture: Path,
    output: Path,
    threshold: float,
    keep: str | None,
    tolerated: float,
    sigma: float,
    stray: float,
    smooth: int,
    long_side: int | None,
) -> Pruning:
    """`secateur mesh prune`."""
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{output}: no format of meshes has this suffix; known are {', '.join(SUFFIXES)}")
    refinement = TopologyRefinement(SilhouetteCoverage(sigma, tolerated), threshold, _budget(keep), stray, smooth)
    steps = Steps()
    with progress_bar() as report:
        with steps("read"):
            mesh = read_mesh(file)
            photographs = read_capture(capture, long_side=long_side, report=report)
        seen = Silhouettes.of(photographs)
        report(0.2, "pruning")
        with steps("prune"):
            pruned, removed = refinement.prune(mesh, seen)
        report(0.8, "judging")
        with steps("judge"):
            judges = Silhouettes.of(photographs, photographs.test) if len(photographs.test) else seen
            before, after = (float(silhouette_iou(each, judges).mean()) for each in (mesh, pruned))
        with steps("write"):
            write_mesh(pruned, output)
    return Pruning(
        MeshInfo.of(file, mesh),
        MeshInfo.of(output, pruned),
        removed,
        (before, after),
        bool(len(photographs.test)),
        len(seen),
        steps.seconds,
    )


def _budget(keep: str | None) -> Budget | None:
    if keep is None:
        return None
    amount = parse_keep(keep)
    return Budget(share=amount) if isinstance(amount, float) else Budget(limit=amount)


def show_info(info: MeshInfo) -> None:
    """A table of what is in a mesh."""
    table = result_table(info.name, "", "")
    _add_columns(table, [info])
    console.print(table)


def show_pruning(record: Pruning) -> None:
    """A table of before and after."""
    console.print(pruning_table(record))


def pruning_table(record: Pruning) -> Table:
    """A mesh before and after."""
    table = result_table(record.pruned.name, "", "original", "pruned")
    _add_columns(table, [record.original, record.pruned])
    views = "held-out views" if record.held_out else "the views scored through"
    table.add_row(f"silhouette IoU, {views}", *(f"{value:.4f}" for value in record.iou))
    for reason, count in record.removed.items():
        if count:
            table.add_row(f"faces removed: {reason}", "", f"{count:,}")
    table.add_row("seconds", "", f"{sum(record.seconds.values()):.1f}")
    return table


def _add_columns(table: Table, infos: list[MeshInfo]) -> None:
    shapes = [asdict(info.shape) for info in infos]
    for key in shapes[0]:
        cells = [shape[key] for shape in shapes]
        table.add_row(key.replace("_", " "), *("undefined" if cell is None else f"{cell:,}" for cell in cells))
    table.add_row("bytes", *(f"{info.bytes:,} ({format_bytes(info.bytes)})" for info in infos))
    table.add_row("area", *(f"{info.area:.4g}" for info in infos))
    for name in ("low", "high"):
        corners = [getattr(info, name) for info in infos]
        table.add_row(f"{name} corner", *(" ".join(f"{value:.3f}" for value in corner) for corner in corners))
