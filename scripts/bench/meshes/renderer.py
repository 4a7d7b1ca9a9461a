"""Soft silhouettes of spheres of more and more faces: milliseconds and memory, ours and the equation in plain torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from meters import peak_bytes_above, timed
from parts import Job
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.mesh.mesh import Mesh
from compress3d.mesh.shapes import icosphere
from compress3d.mesh.silhouette import project_faces, soft_silhouettes
from compress3d.splats.views import look_at
from meshes.settings import Settings
from secateur.console import Report

SIGMA = 0.5
DENSE_FACES = 80
"""The most faces that the plain equation is tried on: it holds every pixel for every face."""


def jobs(settings: Settings) -> dict[str, Job]:
    """A part for each number of faces."""
    steps = (1, 2) if settings.quick else (1, 3, 4, 5, 6)
    size = 64 if settings.quick else 256
    return {f"{20 * 4**step} faces": partial(_measured, step, size) for step in steps}


def _measured(step: int, size: int, report: Report, folder: Path) -> dict[str, Any]:
    mesh = icosphere(step)
    mesh = mesh.with_vertices(mesh.vertices.requires_grad_())
    camera = camera_at(size)
    methods = {"ours": lambda: soft_silhouettes(mesh, camera, SIGMA)[0]}
    if len(mesh) <= DENSE_FACES:
        methods["plain torch"] = lambda: dense(mesh, camera)
    rows = []
    for name, draw in methods.items():
        report(len(rows) / len(methods), name)
        repeats = 5 if name == "ours" else 2
        draw().sum().backward()
        forward = timed(lambda draw=draw: draw().detach(), repeats)
        both = timed(lambda draw=draw: draw().sum().backward(), repeats)
        memory = peak_bytes_above(lambda draw=draw: draw().sum().backward())
        rows.append({"method": name, "forward": forward, "forward_backward": both, "peak_bytes": memory})
    return {"faces": len(mesh), "size": size, "sigma": SIGMA, "rows": rows}


def camera_at(size: int) -> Cameras:
    """A camera in whose image the unit sphere takes about two thirds of the width."""
    eye = np.array([[0.0, -3.0, 0.4]])
    K = torch.tensor([[[0.95 * size, 0, size / 2], [0, 0.95 * size, size / 2], [0, 0, 1]]])
    return Cameras(torch.as_tensor(look_at(eye, eye * 0)).float(), K, size, size)


def dense(mesh: Mesh, camera: Cameras) -> Tensor:
    """1 - product of 1 - sigmoid(s d^2 / sigma), a face at a time but every pixel for each."""
    y, x = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).double()
    clear = torch.ones(camera.height, camera.width, dtype=torch.float64)
    for corners in project_faces(mesh.vertices, mesh.faces, camera).reshape(-1, 3, 2):
        squares, sides = [], []
        for edge in range(3):
            along, offset = corners[(edge + 1) % 3] - corners[edge], pixels - corners[edge]
            t = ((offset * along).sum(-1) / along.square().sum()).clamp(0, 1)[..., None]
            squares.append((offset - t * along).square().sum(-1))
            sides.append(along[0] * offset[..., 1] - along[1] * offset[..., 0])
        signs = torch.stack(sides)
        inside = (signs > 0).all(dim=0) | (signs < 0).all(dim=0)
        distance = torch.where(inside, 1.0, -1.0) * torch.stack(squares).amin(dim=0)
        clear = clear * (1 - torch.sigmoid(distance / SIGMA))
    return 1 - clear
