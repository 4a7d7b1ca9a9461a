"""A capture whose truth is known: a small scene, photographed by the rasteriser from all around."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compress3d.cameras import Cameras
from compress3d.captures import Capture
from compress3d.splats.rasterize import render_each
from compress3d.splats.scene import SplatScene

SIZE = 24
FOCAL = 30.0


def blobs(count: int = 12) -> SplatScene:
    """Coloured opaque balls within a unit of the origin."""
    random = torch.Generator().manual_seed(4)
    return SplatScene(
        means=torch.rand(count, 3, generator=random) * 1.4 - 0.7,
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        scales=torch.full((count, 3), math.log(0.2)),
        opacities=torch.full((count,), 3.0),
        sh0=torch.rand(count, 1, 3, generator=random) * 3 - 1.5,
        shN=torch.zeros(count, 0, 3),
    )


def around(count: int, distance: float = 4.0) -> Cameras:
    """Cameras on a rising spiral that look at the origin."""
    viewmats = torch.eye(4).repeat(count, 1, 1)
    for index in range(count):
        angle, height = 2 * math.pi * index * 0.382, math.sin(1.7 * index) * 0.6
        position = torch.tensor([math.cos(angle), height, math.sin(angle)])
        forward = -position / position.norm()
        right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward)
        right = right / right.norm()
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
        viewmats[index, :3, :3], viewmats[index, :3, 3] = rotation, torch.tensor([0.0, 0.0, distance])
    K = torch.tensor([[FOCAL, 0.0, SIZE / 2], [0.0, FOCAL, SIZE / 2], [0.0, 0.0, 1.0]])
    return Cameras(viewmats, K.repeat(count, 1, 1), SIZE, SIZE)


def photographed(count: int = 16, alpha: bool = True) -> Capture:
    """`count` photographs of `blobs`, every eighth to test by; on black where there is no alpha."""
    cameras = around(count)
    images, alphas = [], []
    for image, opacity in render_each(blobs(), cameras, (0.0, 0.0, 0.0)):
        straight = image / opacity[..., None].clamp_min(1e-6) if alpha else image
        images.append((straight.clamp(0, 1) * 255 + 0.5).byte())
        alphas.append((opacity * 255 + 0.5).byte())
    every = torch.arange(count)
    return Capture(
        "blobs",
        cameras,
        torch.stack(images),
        tuple(f"{index:03d}.png" for index in range(count)),
        every[every % 8 != 0],
        every[every % 8 == 0],
        torch.stack(alphas) if alpha else None,
        background=(1.0, 1.0, 1.0) if alpha else (0.0, 0.0, 0.0),
    )


def write_capture(folder: Path, count: int = 16) -> Path:
    """The capture as a folder with a transforms.json."""
    capture = photographed(count)
    assert capture.alphas is not None
    folder.mkdir()
    frames = []
    for index, name in enumerate(capture.names):
        pixels = torch.cat([capture.images[index], capture.alphas[index, ..., None]], dim=2)
        Image.fromarray(pixels.numpy()).save(folder / name)
        pose = np.linalg.inv(capture.cameras.viewmats[index].double().numpy()) @ np.diag([1.0, -1.0, -1.0, 1.0])
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    record = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2, "w": SIZE, "h": SIZE, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(record))
    return folder
