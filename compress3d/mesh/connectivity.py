"""What hangs together in a mesh: edges, components, boundaries, the Euler characteristic and the genus.

Faces hang together over shared edges. A vertex at which several fans of faces touch counts once for each fan, as if it
were split there; so the surface around every vertex is a disc or half a disc, and the genus is well defined.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from compress3d.mesh.mesh import Mesh


@dataclass(frozen=True)
class Connectivity:
    """The edges of F triangles, and what follows from them.

    Args:
        faces: (F, 3) int64 vertices of each face.
    """

    faces: np.ndarray

    @classmethod
    def of(cls, mesh: Mesh) -> Connectivity:
        """That of a mesh."""
        return cls(mesh.faces.cpu().numpy())

    @cached_property
    def _unique_edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ends = np.sort(self.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        edges, inverse, counts = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
        return edges, inverse.reshape(-1, 3), counts

    @property
    def edges(self) -> np.ndarray:
        """(E, 2) vertices of each edge, the lower first."""
        return self._unique_edges[0]

    @property
    def face_edges(self) -> np.ndarray:
        """(F, 3) edges of each face: from corner 0 to 1, from 1 to 2, from 2 to 0."""
        return self._unique_edges[1]

    @property
    def edge_faces(self) -> np.ndarray:
        """(E,) how many faces share each edge: 1 on a boundary, 2 on a surface, more where it is not manifold."""
        return self._unique_edges[2]

    @cached_property
    def components(self) -> np.ndarray:
        """(F,) the number of each face's component, from 0 on."""
        count, edges = len(self.faces), len(self.edges)
        if not count:
            return np.zeros(0, np.int64)
        rows, columns = np.repeat(np.arange(count), 3), count + self.face_edges.ravel()
        labels = _components(rows, columns, count + edges)[:count]
        return np.unique(labels, return_inverse=True)[1]

    @cached_property
    def corner_vertices(self) -> np.ndarray:
        """(F, 3) the number of each corner's vertex, once vertices are split where several fans of faces touch."""
        count = len(self.faces)
        if not count:
            return np.zeros((0, 3), np.int64)
        # A node for each corner and for each end of each edge: corners meet where a face has that edge.
        ends = self.edges[self.face_edges]
        lower = np.stack([self.faces, self.faces[:, [1, 2, 0]]], axis=2) != ends[:, :, :1]
        corners = np.arange(3 * count).reshape(-1, 3)
        corners = np.stack([corners, corners[:, [1, 2, 0]]], axis=2)
        nodes = 3 * count + 2 * self.face_edges[:, :, None] + lower
        labels = _components(corners.ravel(), nodes.ravel(), 3 * count + 2 * len(self.edges))[: 3 * count]
        return np.unique(labels, return_inverse=True)[1].reshape(-1, 3)

    @property
    def boundary_loops(self) -> int:
        """How many closed lines the edges with one face make."""
        at_boundary = self.edge_faces[self.face_edges] == 1
        ends = np.stack([self.corner_vertices, self.corner_vertices[:, [1, 2, 0]]], axis=2)[at_boundary]
        if not len(ends):
            return 0
        nodes, ends = np.unique(ends, return_inverse=True)
        ends = ends.reshape(-1, 2)
        return len(np.unique(_components(ends[:, 0], ends[:, 1], len(nodes))))

    @property
    def non_manifold_edges(self) -> int:
        """How many edges more than two faces share."""
        return int((self.edge_faces > 2).sum())

    @property
    def is_manifold(self) -> bool:
        """Whether no edge has more than two faces, and every vertex one fan of them."""
        return self.non_manifold_edges == 0 and len(np.unique(self.corner_vertices)) == len(np.unique(self.faces))

    @property
    def euler_characteristic(self) -> int:
        """Vertices that faces name, minus edges, plus faces."""
        return len(np.unique(self.faces)) - len(self.edges) + len(self.faces)

    @property
    def genus(self) -> int | None:
        """Handles of all components together: (2 components - boundary loops - characteristic) / 2.

        The characteristic is that of the mesh with its vertices split. None where edges have more than two faces, or
        the surface has one side only.
        """
        if self.non_manifold_edges:
            return None
        characteristic = len(np.unique(self.corner_vertices)) - len(self.edges) + len(self.faces)
        components = int(self.components.max()) + 1 if len(self.faces) else 0
        twice = 2 * components - self.boundary_loops - characteristic
        return twice // 2 if twice % 2 == 0 and self.is_orientable else None

    @property
    def is_orientable(self) -> bool:
        """Whether the faces can be turned so that neighbours agree which side is outside."""
        # Each face twice, once for each side: a surface has two sides if no component holds both of a face.
        count = len(self.faces)
        order = np.argsort(self.face_edges.ravel(), kind="stable")
        edges = self.face_edges.ravel()[order]
        pairs = np.flatnonzero((edges[1:] == edges[:-1]) & (self.edge_faces[edges[1:]] == 2))
        first, second = order[pairs], order[pairs + 1]
        starts = self.faces.ravel()
        agree = starts[first] != starts[second]
        rows, columns = first // 3, second // 3
        other = np.where(agree, columns, columns + count)
        across = np.where(agree, columns + count, columns)
        labels = _components(np.concatenate([rows, rows + count]), np.concatenate([other, across]), 2 * count)
        return bool((labels[:count] != labels[count:]).all())


def _components(rows: np.ndarray, columns: np.ndarray, nodes: int) -> np.ndarray:
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1]
