"""What cameras see of a mesh: soft silhouettes, differentiable in positions and in each face's strength."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress3d.cameras import Cameras
from compress3d.mesh.kernels import composite, composite_backward, gather, list_strips, reach_of
from compress3d.mesh.mesh import Mesh

NEAR = 0.01
"""Depth in world units, from which on a vertex is in front of a camera. Faces with a corner nearer are not drawn."""

SHARP = 1e-6
"""A sigma in square pixels that is as good as 0: pixels are covered or not."""


def soft_silhouettes(mesh: Mesh, cameras: Cameras, sigma: float = 0.5) -> Float[Tensor, "C H W"]:
    """How much of each pixel the mesh covers: 1 - product over faces of (1 - strength D), in [0, 1].

    The silhouette of Liu et al. 2019 (Soft Rasterizer, arXiv 1904.01786, equations 1 and 4), with D = sigmoid(s d^2 /
    sigma), d the distance from the pixel's centre to the outline of the projected face and s = 1 inside, -1 outside.
    (The paper's sigma is in squares of half an image's side; this one is in square pixels.) D is 0.5 on an outline, so
    a large sigma leaves seams between faces that are much larger than it, and a halo around meshes of smaller ones.

    On the CPU. Time and memory are linear in faces and in the pixels that each covers. Differentiable in the mesh's
    vertices and, through `mesh.masked`, in the strengths of its faces.

    Args:
        mesh: what is drawn; faces with a corner nearer than NEAR to a camera's plane are left out of its view.
        cameras: C views.
        sigma: softness in square pixels, above 0.

    Raises:
        ValueError: sigma is not above 0.
    """
    return torch.stack([soft_silhouette(mesh, cameras[index], sigma) for index in range(len(cameras))])


def soft_silhouette(mesh: Mesh, camera: Cameras, sigma: float = 0.5) -> Float[Tensor, "H W"]:
    """One view of `soft_silhouettes`."""
    _check(sigma)
    triangles = project_faces(mesh.vertices, mesh.faces, camera)
    clear = _Composite.apply(triangles, mesh.strengths(), sigma, camera.width, camera.height)
    return 1 - clear.to(mesh.vertices)


@torch.no_grad()
def silhouettes(mesh: Mesh, cameras: Cameras) -> Float[Tensor, "C H W"]:
    """Sharp silhouettes: 1 where a pixel's centre is inside a face, else 0."""
    return (soft_silhouettes(mesh, cameras, SHARP) > 0.5).to(mesh.vertices)


@torch.no_grad()
def coverage_in(
    mesh: Mesh, camera: Cameras, values: Float[Tensor, "H W"], sigma: float = 0.5
) -> tuple[Float[Tensor, " F"], Float[Tensor, " F"]]:
    """For each face alone, the sum over pixels of D * value and of D; both (F,) float64, the latter in pixels."""
    _check(sigma)
    if values.shape != (camera.height, camera.width):
        raise ValueError(f"values must be ({camera.height}, {camera.width}), got {tuple(values.shape)}")
    triangles = _as_array(project_faces(mesh.vertices, mesh.faces, camera))
    sums = torch.from_numpy(gather(triangles, _as_array(values), sigma, reach_of(sigma)))
    return sums[:, 1], sums[:, 0]


@torch.no_grad()
def shown_whole(mesh: Mesh, camera: Cameras) -> Bool[Tensor, " F"]:
    """Which faces have all corners in the image, and in front."""
    corners = project_faces(mesh.vertices, mesh.faces, camera).reshape(-1, 3, 2)
    size = corners.new_tensor([camera.width, camera.height])
    return ((corners >= 0) & (corners <= size)).all(dim=2).all(dim=1)


def project_faces(vertices: Float[Tensor, "V 3"], faces: Int64[Tensor, "F 3"], camera: Cameras) -> Float[Tensor, "F 6"]:
    """u, v of each face's corners in pixels, float64, differentiable; NaN where a corner is not in front."""
    viewmat, K = camera.viewmats[0].to(vertices.device).double(), camera.Ks[0].to(vertices.device).double()
    points = (vertices.double() @ viewmat[:3, :3].T + viewmat[:3, 3]) @ K.T
    depths = points[:, 2:]
    in_front = depths > NEAR
    # Divided by 1 where it would be by 0, so that no NaN reaches the gradients of what is drawn.
    pixels = points[:, :2] / torch.where(in_front, depths, 1.0)
    corners = pixels[faces].reshape(len(faces), 6)
    return torch.where(in_front[faces, 0].all(dim=1, keepdim=True), corners, torch.nan)


class _Composite(torch.autograd.Function):
    """(triangles (F, 6), strengths (F,), sigma, width, height) -> product over faces of 1 - strength D, (H, W)."""

    @staticmethod
    def forward(ctx: Any, triangles: Tensor, strengths: Tensor, sigma: float, width: int, height: int) -> Tensor:
        arrays = (_as_array(triangles), _as_array(strengths))
        reach = reach_of(sigma)
        starts, faces = list_strips(arrays[0], reach, width, height)
        product, zeros = composite(*arrays, starts, faces, sigma, reach, width, height)
        ctx.arrays, ctx.sigma = (*arrays, product, zeros), sigma
        ctx.options = [{"dtype": tensor.dtype, "device": tensor.device} for tensor in (triangles, strengths)]
        return torch.from_numpy(np.where(zeros > 0, 0.0, product))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_product: Tensor) -> tuple[Tensor | None, ...]:
        arguments: tuple[Any, ...] = (*ctx.arrays, _as_array(v_product), ctx.sigma, reach_of(ctx.sigma))
        gradients = composite_backward(*arguments)
        v_triangles, v_strengths = (
            torch.from_numpy(gradient).to(**options) for gradient, options in zip(gradients, ctx.options, strict=True)
        )
        return v_triangles, v_strengths, None, None, None


def _as_array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float64)


def _check(sigma: float) -> None:
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
