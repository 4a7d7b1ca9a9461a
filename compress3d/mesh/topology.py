"""Topology refinement: a mesh loses the faces that silhouettes refuse, and with them false fillings and floaters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from compress3d.mesh.cleaning import (
    smoothed,
    with_split_vertices,
    without_branching_edges,
    without_degenerate_faces,
    without_stray_components,
)
from compress3d.mesh.connectivity import Connectivity
from compress3d.mesh.importance import SilhouetteCoverage, Silhouettes
from compress3d.mesh.mesh import FACES, Mesh
from secateur.allocation import Budget, allocate


@dataclass(frozen=True, slots=True)
class Shape:
    """What a mesh is made of, and how it hangs together.

    Args:
        vertices: number of vertices.
        faces: number of triangles.
        components: pieces that hang together over edges.
        boundary_loops: closed lines of edges with one face; 0 for a closed surface.
        euler_characteristic: vertices that faces name - edges + faces.
        genus: handles of all pieces together; None where edges branch or the surface has one side.
        non_manifold_edges: edges of more than two faces.
    """

    vertices: int
    faces: int
    components: int
    boundary_loops: int
    euler_characteristic: int
    genus: int | None
    non_manifold_edges: int

    @classmethod
    def of(cls, mesh: Mesh) -> Shape:
        """That of a mesh."""
        connectivity = Connectivity.of(mesh)
        return cls(
            vertices=len(mesh.vertices),
            faces=len(mesh),
            components=int(connectivity.components.max()) + 1 if len(mesh) else 0,
            boundary_loops=connectivity.boundary_loops,
            euler_characteristic=connectivity.euler_characteristic,
            genus=connectivity.genus,
            non_manifold_edges=connectivity.non_manifold_edges,
        )


@dataclass(frozen=True)
class TopologyRefinement:
    """Removes the faces whose soft footprint is outside the silhouettes, and cleans up what is left.

    Landreau and Tamaazousti, Pruning-based Topology Refinement of 3D Mesh using a 2D Alpha Mask (arXiv 2210.09148).
    Pieces that no silhouette refuses but that hung on refused ones are removed by their area. A mesh whose faces are
    all inside keeps every one of them, bit for bit, unless it had copies, branching edges or stray pieces before.

    Args:
        criterion: the score of each face; faces that no view shows score 0.
        threshold: faces that score below it go. A face on the rim of a silhouette, as every face of a true surface is
            in some view, scores about 0.5 there.
        budget: how many faces stay, instead of the threshold: the best of them.
        stray: pieces with less than this share of the largest piece's area go.
        smoothing: steps of `smoothed` at the end.
    """

    criterion: SilhouetteCoverage = field(default_factory=SilhouetteCoverage)
    threshold: float = 0.25
    budget: Budget | None = None
    stray: float = 0.01
    smoothing: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or not 0 <= self.stray <= 1 or self.smoothing < 0:
            raise ValueError(
                "threshold and stray in [0, 1] and smoothing >= 0 are needed, got "
                f"{self.threshold}, {self.stray} and {self.smoothing}"
            )

    def prune(self, mesh: Mesh, silhouettes: Silhouettes) -> tuple[Mesh, dict[str, Any]]:
        """The refined mesh, and what went: faces by reason.

        Args:
            mesh: in the world of the cameras; it is left as it is.
            silhouettes: of the object that the mesh stands for.

        Raises:
            ValueError: no face would be left.
        """
        scores = self.criterion.score(mesh, silhouettes)
        if self.budget is None:
            keep = {FACES: scores[FACES] >= max(self.threshold, torch.finfo(torch.float32).tiny)}
        else:
            keep = allocate(scores, mesh.groups(), self.budget)
        if not bool(keep[FACES].any()):
            raise ValueError(
                f"none of the {len(mesh)} faces is inside the silhouettes: the best scores "
                f"{float(scores[FACES].max()) if len(mesh) else 0:.3f} of a threshold of {self.threshold}; are mesh "
                f"and cameras in the same world?"
            )
        inside = mesh.cut(keep)
        proper = without_degenerate_faces(inside)
        manifold = without_branching_edges(proper)
        whole = without_stray_components(manifold, self.stray)
        went = {
            "outside": len(mesh) - len(inside),
            "degenerate": len(inside) - len(proper),
            "branching": len(proper) - len(manifold),
            "stray": len(manifold) - len(whole),
        }
        return smoothed(with_split_vertices(whole), self.smoothing), went
