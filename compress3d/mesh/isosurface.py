"""Surfaces of fields that are known on a grid: of a density, or of what no silhouette refuses (the visual hull)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.mesh.cleaning import without_degenerate_faces
from compress3d.mesh.importance import Silhouettes
from compress3d.mesh.library import load_open3d
from compress3d.mesh.mesh import Mesh
from compress3d.mesh.silhouette import NEAR
from secateur.console import Report, silent

Corner = tuple[float, float, float]

_REACH = 8.0
"""Pixels from a silhouette's outline beyond which the distance is not told apart."""


def isosurface(values: Float[Tensor, "X Y Z"], low: Corner, high: Corner, level: float = 0.0) -> Mesh:
    """Where a field on a grid crosses `level`, closed at the grid's border: marching cubes, through open3d.

    Args:
        values: (X, Y, Z) the field at grid points, the first at `low` and the last at `high`; above the level inside.
        low: lowest corner of the grid, in world units.
        high: highest corner.
        level: where the surface is.

    Returns:
        A mesh, float32, seen counter-clockwise from outside.

    Raises:
        ValueError: the field is not of three dimensions of at least 2, not finite, or nowhere above the level.
        ModuleNotFoundError: there is no open3d.
    """
    if values.ndim != 3 or min(values.shape) < 2 or not bool(torch.isfinite(values).all()):
        raise ValueError(f"values must be finite and (X, Y, Z) of at least 2 each, got {tuple(values.shape)}")
    if not bool((values > level).any()):
        raise ValueError(f"the field is nowhere above {level}, its highest value is {float(values.max()):g}")
    open3d = load_open3d()
    outside = min(float(values.min()), level) - 1.0
    padded = torch.nn.functional.pad(values.detach().cpu().float(), (1,) * 6, value=outside)
    # open3d's order of axes is z, y, x.
    volume = open3d.core.Tensor(np.ascontiguousarray(padded.permute(2, 1, 0).numpy()))
    surface = open3d.t.geometry.TriangleMesh.create_isosurfaces(volume, [level])
    points = torch.from_numpy(surface.vertex.positions.numpy().copy()).double() - 1
    faces = torch.from_numpy(surface.triangle.indices.numpy().copy()).long()
    start = torch.tensor(low, dtype=torch.float64)
    steps = (torch.tensor(high, dtype=torch.float64) - start) / (torch.tensor(values.shape) - 1)
    return outwards(without_degenerate_faces(Mesh((points * steps + start).float(), faces)))


def outwards(mesh: Mesh) -> Mesh:
    """The mesh with all faces turned, if its volume is negative."""
    a, b, c = mesh.vertices.double()[mesh.faces].unbind(dim=1)
    volume = (a * torch.linalg.cross(b, c)).sum()
    return replace(mesh, faces=mesh.faces[:, [0, 2, 1]]) if float(volume) < 0 else mesh


def visual_hull(
    silhouettes: Silhouettes, low: Corner, high: Corner, resolution: int = 128, report: Report = silent
) -> Mesh:
    """The largest body that fits all silhouettes (Laurentini 1994), as a mesh; arguments as for `hull_field`.

    Raises:
        ValueError: the resolution is below 2, or nothing is inside all silhouettes.
        ModuleNotFoundError: there is no open3d.
    """
    return isosurface(hull_field(silhouettes, low, high, resolution, report), low, high)


def hull_field(
    silhouettes: Silhouettes, low: Corner, high: Corner, resolution: int = 128, report: Report = silent
) -> Float[Tensor, "X Y Z"]:
    """Where the largest body is that fits all silhouettes: above 0 inside, and smooth enough to draw a surface through.

    A grid point's value is the least over the views of its signed distance in pixels from the silhouette's outline, so
    that the surface is smooth at resolutions coarser than the images. Views that do not show a point do not count.

    Args:
        silhouettes: of the object.
        low: lowest corner of the space in which it is, in world units: the first grid point.
        high: highest corner: the last grid point.
        resolution: grid points along each axis, at least 2.
        report: told how far it is.

    Returns:
        Pixels, within 8 either way.

    Raises:
        ValueError: the resolution is below 2.
    """
    if resolution < 2:
        raise ValueError(f"resolution must be at least 2, got {resolution}")
    axes = [torch.linspace(start, end, resolution) for start, end in zip(low, high, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    field = torch.full((len(points),), _REACH)
    # Once a point is far outside one silhouette, no other can bring it back.
    left = torch.arange(len(points))
    for index, alpha in enumerate(silhouettes.alphas):
        report(index / len(silhouettes), "carving the visual hull")
        told = sampled(signed_distances(alpha), points[left], silhouettes.cameras[index], _REACH)
        field[left] = torch.minimum(field[left], told)
        left = left[field[left] > -_REACH]
    return field.reshape(resolution, resolution, resolution)


def signed_distances(alpha: Float[Tensor, "H W"], reach: float = _REACH) -> Float[Tensor, "H W"]:
    """Distance in pixels to the outline of alpha >= 0.5, positive inside, at most `reach` either way."""
    inside = alpha.cpu().numpy() >= 0.5
    # Half a pixel less: the outline is between the last pixel inside and the first outside.
    if inside.all() or not inside.any():
        return torch.full(alpha.shape, reach if inside.any() else -reach)
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    return torch.from_numpy(distance - 0.5 * np.sign(distance)).float().clamp(-reach, reach)


def sampled(
    image: Float[Tensor, "H W"], points: Float[Tensor, "P 3"], camera: Cameras, unseen: float
) -> Float[Tensor, " P"]:
    """An image at the places where a camera sees points, bilinearly; `unseen` where it does not."""
    viewmat, K = camera.viewmats[0], camera.Ks[0]
    seen = (points @ viewmat[:3, :3].T + viewmat[:3, 3]) @ K.T
    depths = seen[:, 2]
    places = seen[:, :2] / depths.clamp_min(NEAR)[:, None] / torch.tensor([camera.width, camera.height]) * 2 - 1
    values = torch.nn.functional.grid_sample(
        image[None, None], places[None, None], padding_mode="border", align_corners=False
    )[0, 0, 0]
    shown = (depths > NEAR) & (places.abs() <= 1).all(dim=1)
    return torch.where(shown, values, unseen)
