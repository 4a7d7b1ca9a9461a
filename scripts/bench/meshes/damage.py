"""What reconstructions get wrong, put into a good mesh: floaters, bumps, and membranes between parts."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from compress3d.mesh.mesh import Mesh
from compress3d.mesh.shapes import icosphere, joined

Box = tuple[tuple[float, ...], tuple[float, ...]]


def damaged(mesh: Mesh, box: Box, seed: int = 0, floaters: int = 40, bumps: int = 12) -> tuple[Mesh, dict[str, int]]:
    """The mesh with all three, and how many faces each added (bumps: moved)."""
    generator = torch.Generator().manual_seed(seed)
    bent, moved = with_bumps(mesh, bumps, generator)
    around = [floater(mesh, box, generator) for _ in range(floaters)]
    sheets = membranes(mesh)
    counts = {
        "floaters": sum(map(len, around)),
        "membranes": sum(map(len, sheets)),
        "bumps": int(moved[mesh.faces].any(dim=1).sum()),
    }
    return joined(bent, *sheets, *around), counts


def with_bumps(mesh: Mesh, count: int, generator: torch.Generator, height: float = 0.15) -> tuple[Mesh, Tensor]:
    """Drawn outwards around some vertices, and which vertices moved by more than a hundredth of a unit."""
    normals = vertex_normals(mesh)
    offset = torch.zeros(len(mesh.vertices), 1)
    for centre in torch.randint(len(mesh.vertices), (count,), generator=generator).tolist():
        distance = (mesh.vertices - mesh.vertices[centre]).norm(dim=1, keepdim=True)
        offset = torch.maximum(offset, height * torch.exp(-0.5 * (distance / 0.04).square()))
    return mesh.with_vertices(mesh.vertices + offset * normals), offset[:, 0] > 0.01


def floater(mesh: Mesh, box: Box, generator: torch.Generator) -> Mesh:
    """A small sphere in the box that does not touch the mesh."""
    low, high = (torch.tensor(corner) for corner in box)
    tree, ball = cKDTree(mesh.vertices.numpy()), icosphere(2)
    while True:
        radius = 0.02 + 0.05 * float(torch.rand(1, generator=generator))
        centre = low + (high - low) * torch.rand(3, generator=generator)
        if tree.query(centre.numpy())[0] > 1.5 * radius:
            return ball.with_vertices(ball.vertices * radius + centre)


def membranes(mesh: Mesh, quads: int = 40) -> list[Mesh]:
    """Upright sheets along the four sides of what is below the middle: between the legs of a chair."""
    lower = mesh.vertices[mesh.vertices[:, 2] < mesh.vertices[:, 2].mean() - 0.2]
    near, far = lower.quantile(0.05, dim=0), lower.quantile(0.95, dim=0)
    up, along = torch.linspace(float(near[2]), float(far[2]), quads + 1), torch.linspace(0, 1, quads + 1)
    sheets = []
    for axis, place in ((0, near[0]), (0, far[0]), (1, near[1]), (1, far[1])):
        other = 1 - axis
        width = near[other] + (far[other] - near[other]) * along
        points = torch.empty(quads + 1, quads + 1, 3)
        points[..., axis], points[..., other], points[..., 2] = place, width[:, None], up[None]
        rows = torch.arange(quads)[:, None] * (quads + 1) + torch.arange(quads)
        a, b, c, d = (rows.flatten() + step for step in (0, quads + 1, quads + 2, 1))
        faces = torch.cat([torch.stack([a, b, c], dim=1), torch.stack([a, c, d], dim=1)])
        sheets.append(Mesh(points.reshape(-1, 3), faces))
    return sheets


def vertex_normals(mesh: Mesh) -> Tensor:
    """(V, 3) unit normals, the mean of the faces' around, by area."""
    a, b, c = mesh.vertices[mesh.faces].unbind(dim=1)
    normals = torch.zeros_like(mesh.vertices)
    across = torch.linalg.cross(b - a, c - a)
    for corner in range(3):
        normals.index_add_(0, mesh.faces[:, corner], across)
    return torch.nn.functional.normalize(normals, dim=1)
