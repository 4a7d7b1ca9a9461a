"""What is left to tidy when faces went: copies, slivers of nothing, branching edges, touching fans, stray pieces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from compress3d.mesh.connectivity import Connectivity
from compress3d.mesh.mesh import FACES, Mesh


def areas(mesh: Mesh) -> Float[Tensor, " F"]:
    """(F,) areas of the faces, in square world units."""
    a, b, c = mesh.vertices[mesh.faces].unbind(dim=1)
    return torch.linalg.cross(b - a, c - a).norm(dim=1) / 2


def without_degenerate_faces(mesh: Mesh) -> Mesh:
    """Without faces that name a vertex twice, and without those that name the three of an earlier face."""
    ordered = mesh.faces.sort(dim=1).values
    proper = (ordered[:, 1:] != ordered[:, :-1]).all(dim=1).numpy()
    first = np.zeros(len(mesh), dtype=bool)
    first[np.unique(ordered.numpy(), axis=0, return_index=True)[1]] = True
    return _only(mesh, proper & first)


def without_branching_edges(mesh: Mesh) -> Mesh:
    """Every edge keeps at most its two largest faces, so that no more than two meet anywhere.

    The smallest go first, edge by edge in one pass; where a face that goes would have freed another edge of it, that
    edge's next one may go too.
    """
    connectivity = Connectivity.of(mesh)
    if not connectivity.non_manifold_edges:
        return mesh
    edges, size = connectivity.face_edges.ravel(), np.repeat(areas(mesh).detach().numpy(), 3)
    order = np.lexsort((-size, edges))
    starts = np.cumsum(connectivity.edge_faces) - connectivity.edge_faces
    rank = np.arange(len(order)) - starts[edges[order]]
    keep = np.ones(len(mesh), dtype=bool)
    keep[order[rank >= 2] // 3] = False
    return _only(mesh, keep)


def with_split_vertices(mesh: Mesh) -> Mesh:
    """A vertex where several fans of faces touch becomes one for each; the first keeps its row. No face goes."""
    corners = torch.from_numpy(Connectivity.of(mesh).corner_vertices).flatten()
    old = mesh.faces.flatten()
    fans, first = np.unique(corners.numpy(), return_index=True)
    owners = old[torch.from_numpy(first)]
    # The fan that comes first at a vertex stays there; the others get rows at the end.
    is_first = torch.zeros(len(fans), dtype=torch.bool)
    is_first[torch.from_numpy(np.unique(owners.numpy(), return_index=True)[1])] = True
    if bool(is_first.all()):
        return mesh
    rows = torch.where(is_first, owners, len(mesh.vertices) - 1 + (~is_first).cumsum(0))
    vertices = torch.cat([mesh.vertices, mesh.vertices[owners[~is_first]]])
    return replace(mesh, vertices=vertices, faces=rows[corners].reshape(-1, 3))


def without_stray_components(mesh: Mesh, share: float = 0.01) -> Mesh:
    """Without pieces whose area is below `share` of the largest piece's.

    Raises:
        ValueError: the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    if not len(mesh):
        return mesh
    pieces = Connectivity.of(mesh).components
    area = np.bincount(pieces, areas(mesh).detach().double().numpy())
    return _only(mesh, area[pieces] >= share * area.max())


def smoothed(mesh: Mesh, steps: int = 10, inwards: float = 0.5, outwards: float = 0.53) -> Mesh:
    """Smoothed without shrinking (Taubin 1995, A Signal Processing Approach to Fair Surface Design), holes left open.

    Each step moves every vertex towards the mean of its neighbours by `inwards`, then away from it by `outwards`.
    Vertices on a boundary have only their neighbours along it: the rim of a hole is straightened, and neither it
    nor the surface drags at the other's. Topology stays.

    Args:
        mesh: what is smoothed.
        steps: pairs of moves; 0 changes nothing.
        inwards: lambda of the paper, in (0, 1).
        outwards: -mu of the paper, at least lambda.

    Raises:
        ValueError: a number is out of range.
    """
    if steps < 0 or not 0 < inwards <= outwards < 1:
        raise ValueError(
            f"steps >= 0 and 0 < inwards <= outwards < 1 are needed, got {steps}, {inwards} and {outwards}"
        )
    if not steps or not len(mesh):
        return mesh
    mean = _neighbour_means(mesh)
    points = mesh.vertices.detach().double().numpy()
    for _ in range(steps):
        for rate in (inwards, -outwards):
            points = points + rate * (mean @ points - points)
    return mesh.with_vertices(torch.from_numpy(points).to(mesh.vertices))


def _neighbour_means(mesh: Mesh) -> csr_array:
    """(V, V) rows that average over neighbours; a vertex without any averages over itself."""
    connectivity, count = Connectivity.of(mesh), len(mesh.vertices)
    at_rim = connectivity.edge_faces == 1
    rim = np.zeros(count, dtype=bool)
    rim[connectivity.edges[at_rim]] = True
    rows, columns = np.concatenate([connectivity.edges, connectivity.edges[:, ::-1]]).T
    counts = ~rim[rows] | np.tile(at_rim, 2)
    alone = np.setdiff1d(np.arange(count), rows[counts])
    rows, columns = np.concatenate([rows[counts], alone]), np.concatenate([columns[counts], alone])
    weights = 1 / np.bincount(rows, minlength=count)[rows]
    return csr_array((weights, (rows, columns)), shape=(count, count))


def _only(mesh: Mesh, keep: np.ndarray) -> Mesh:
    return mesh if keep.all() else mesh.cut({FACES: torch.from_numpy(keep)})
