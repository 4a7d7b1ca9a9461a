"""Meshes of known shape and topology: spheres and tori."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.mesh.mesh import Mesh

_GOLDEN = (1 + math.sqrt(5)) / 2


def icosphere(subdivisions: int = 3, radius: float = 1.0, dtype: torch.dtype = torch.float32) -> Mesh:
    """A sphere around the origin of 20 * 4^subdivisions nearly equal faces, seen counter-clockwise from outside."""
    signs = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    plane = torch.cat([signs, torch.zeros(4, 1, dtype=torch.float64)], dim=1) * torch.tensor([1.0, _GOLDEN, 0.0])
    vertices = torch.cat([plane, plane.roll(1, dims=1), plane.roll(2, dims=1)])
    vertices = vertices / vertices.norm(dim=1, keepdim=True)
    faces = _hull(vertices)
    for _ in range(subdivisions):
        vertices, faces = _subdivide(vertices, faces)
    return Mesh((vertices * radius).to(dtype), faces)


def torus(major: float = 1.0, minor: float = 0.4, around: int = 48, across: int = 24) -> Mesh:
    """A torus around the z axis, of 2 * around * across faces.

    Args:
        major: distance of the tube's middle from the axis.
        minor: radius of the tube.
        around: quads along the tube.
        across: quads around it.
    """
    u = torch.arange(around).repeat_interleave(across) * (2 * math.pi / around)
    v = torch.arange(across).repeat(around) * (2 * math.pi / across)
    ring = major + minor * v.cos()
    vertices = torch.stack([ring * u.cos(), ring * u.sin(), minor * v.sin()], dim=1)
    i, j = torch.arange(around).repeat_interleave(across), torch.arange(across).repeat(around)
    right, up = (i + 1) % around, (j + 1) % across
    a, b, c, d = i * across + j, right * across + j, right * across + up, i * across + up
    faces = torch.cat([torch.stack([a, b, c], dim=1), torch.stack([a, c, d], dim=1)])
    return Mesh(vertices.float(), faces)


def joined(*meshes: Mesh) -> Mesh:
    """Several meshes as one; faces and vertices keep their order."""
    offsets = [0]
    for mesh in meshes:
        offsets.append(offsets[-1] + len(mesh.vertices))
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets[:-1], strict=True)]
    return Mesh(torch.cat([mesh.vertices for mesh in meshes]), torch.cat(faces))


def _hull(vertices: Float[Tensor, "V 3"]) -> Tensor:
    """The faces of the icosahedron: triples of corners that are all at the least distance, turned outwards."""
    distances = torch.cdist(vertices, vertices)
    near = (distances < 1.1) & (distances > 0)
    triples = torch.combinations(torch.arange(len(vertices)), 3)
    a, b, c = triples.unbind(dim=1)
    triples = triples[near[a, b] & near[b, c] & near[a, c]]
    corners = vertices[triples]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outwards = (normals * corners[:, 0]).sum(dim=1, keepdim=True) > 0
    return torch.where(outwards, triples, triples[:, [0, 2, 1]])


def _subdivide(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Each face as four, the new vertices in the middle of edges, pushed out to the unit sphere."""
    ends = faces[:, [[0, 1], [1, 2], [2, 0]]].sort(dim=2).values
    edges, numbers = ends.reshape(-1, 2).unique(dim=0, return_inverse=True)
    middles = vertices[edges].mean(dim=1)
    middle = numbers.reshape(-1, 3) + len(vertices)
    a, b, c = faces.unbind(dim=1)
    ab, bc, ca = middle.unbind(dim=1)
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    fine = torch.stack([torch.stack(part, dim=1) for part in parts], dim=1).reshape(-1, 3)
    return torch.cat([vertices, middles / middles.norm(dim=1, keepdim=True)]), fine
