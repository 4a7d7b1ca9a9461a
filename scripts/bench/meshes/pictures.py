"""Pictures of meshes: points on the surface, nearest in front, shaded by their normals; red where no object is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.mesh.importance import Silhouettes
from compress3d.mesh.mesh import Mesh
from secateur.files import replacing_file


def draw_meshes(meshes: dict[str, Mesh], silhouettes: Silhouettes, path: Path, views: int = 2) -> None:
    """A row of pictures a view, a column a mesh."""
    chosen = [len(silhouettes) * (2 * view + 1) // (2 * views) for view in range(views)]
    figure = Figure(figsize=(3 * len(meshes), 3 * views), layout="constrained")
    axes = np.atleast_2d(figure.subplots(views, len(meshes)))
    for row, view in enumerate(chosen):
        for column, (name, mesh) in enumerate(meshes.items()):
            image = shaded(mesh, silhouettes.cameras[view], silhouettes.alphas[view])
            axes[row, column].imshow(image.numpy())
            axes[row, column].set_axis_off()
            if row == 0:
                axes[row, column].set_title(f"{name}\n{len(mesh):,} faces", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, dpi=100)


def draw_points(clouds: dict[str, tuple[Tensor, Tensor]], camera: Cameras, width: float, path: Path) -> None:
    """A column for each cloud: (N, 3) points as squares of `width` world units, of (N, 3) colours."""
    figure = Figure(figsize=(3 * len(clouds), 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(clouds)))
    for axis, (name, (points, colours)) in zip(axes, clouds.items(), strict=True):
        seen = points @ camera.viewmats[0, :3, :3].T + camera.viewmats[0, :3, 3]
        pixels = ((seen @ camera.Ks[0].T)[:, :2] / seen[:, 2:]).numpy()
        order = torch.argsort(seen[:, 2], descending=True).numpy()
        # Squares in points of print: three inches are the image's width, 72 points an inch.
        side = float(camera.Ks[0, 0, 0]) * width / seen[:, 2].numpy() * 3 * 72 / camera.width
        axis.scatter(*pixels[order].T, s=(1.4 * side[order]) ** 2, c=colours.numpy()[order], marker="s", linewidths=0)
        axis.set(xlim=(0, camera.width), ylim=(camera.height, 0), aspect="equal")
        axis.set_axis_off()
        axis.set_title(f"{name}\n{len(points):,} voxels", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, dpi=100)


def shaded(mesh: Mesh, camera: Cameras, alpha: Tensor, points: int = 600_000) -> Tensor:
    """(H, W, 3) in [0, 1] on white."""
    places, numbers = _points_by_face(mesh, points)
    viewmat, K = camera.viewmats[0], camera.Ks[0]
    seen = places @ viewmat[:3, :3].T + viewmat[:3, 3]
    pixels = (seen @ K.T)[:, :2] / seen[:, 2:]
    shown = (seen[:, 2] > 0.01) & ((pixels >= 0) & (pixels < torch.tensor([camera.width, camera.height]))).all(dim=1)
    u, v = pixels[shown].long().unbind(dim=1)
    depth, faces = seen[shown, 2], numbers[shown]
    order = torch.argsort(depth, descending=True)
    image = torch.ones(camera.height, camera.width, 3)
    a, b, c = mesh.vertices[mesh.faces].unbind(dim=1)
    normals = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1) @ viewmat[:3, :3].T
    light = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, -1.0]), dim=0)
    tone = (0.25 + 0.7 * (normals @ light).abs())[faces]
    outside = alpha[v, u] < 0.5
    colour = torch.where(outside[:, None], torch.tensor([0.9, 0.2, 0.2]), torch.tensor([0.75, 0.8, 0.85]))
    # Written from far to near, in order: numpy lets the last one stay.
    flat = image.reshape(-1, 3).numpy()
    flat[(v * camera.width + u)[order].numpy()] = (colour * tone[:, None])[order].numpy()
    return image


def _points_by_face(mesh: Mesh, count: int) -> tuple[Tensor, Tensor]:
    """Points on the surface, and the face of each."""
    a, b, c = mesh.vertices[mesh.faces].unbind(dim=1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1).double()
    each = (area / area.sum() * count).ceil().long()
    faces = torch.repeat_interleave(torch.arange(len(mesh)), each)
    first, second = torch.rand(2, len(faces), 1, generator=torch.Generator().manual_seed(0))
    over = first + second > 1
    first, second = torch.where(over, 1 - first, first), torch.where(over, 1 - second, second)
    return a[faces] + first * (b - a)[faces] + second * (c - a)[faces], faces
