"""How far a mesh is from another one, and from silhouettes."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from compress3d.mesh.cleaning import areas
from compress3d.mesh.importance import Silhouettes
from compress3d.mesh.mesh import Mesh
from compress3d.mesh.silhouette import silhouettes as drawn


def surface_points(mesh: Mesh, count: int, seed: int = 0) -> Float[Tensor, "P 3"]:
    """(count, 3) points spread evenly at random over the faces, by area.

    Raises:
        ValueError: the mesh has no area.
    """
    area = areas(mesh).detach().double()
    if not float(area.sum()) > 0:
        raise ValueError(f"the mesh of {len(mesh)} faces has no area to put points on")
    generator = torch.Generator().manual_seed(seed)
    faces = torch.multinomial(area, count, replacement=True, generator=generator)
    first, second = torch.rand(2, count, 1, generator=generator)
    # The other half of the parallelogram is folded back.
    over = first + second > 1
    first, second = torch.where(over, 1 - first, first), torch.where(over, 1 - second, second)
    a, b, c = mesh.vertices.detach()[mesh.faces[faces]].unbind(dim=1)
    return a + first * (b - a) + second * (c - a)


def chamfer_distance(mesh: Mesh, reference: Mesh, points: int = 50_000, seed: int = 0) -> float:
    """Mean distance to the nearest point of the other surface, averaged over both ways, in world units.

    (Not squared. What the same surface has, of other points, is its floor: about half the spacing of the points.)
    """
    clouds = [surface_points(mesh, points, seed).numpy(), surface_points(reference, points, seed + 1).numpy()]
    ways = [cKDTree(clouds[1 - i]).query(clouds[i])[0].mean() for i in (0, 1)]
    return float(np.mean(ways))


def silhouette_iou(mesh: Mesh, silhouettes: Silhouettes) -> Float[Tensor, " C"]:
    """(C,) intersection over union of what the mesh covers and alpha >= 0.5, in pixels; 1 if both are empty."""
    wanted = silhouettes.alphas >= 0.5
    found = drawn(mesh, silhouettes.cameras) > 0.5
    both, either = (found & wanted).sum(dim=(1, 2)), (found | wanted).sum(dim=(1, 2))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)
