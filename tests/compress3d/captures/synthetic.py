"""A capture whose truth is known: points seen by cameras on an arc, as every format's files, written by the specs."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 24, 16
FOCAL = 30.0
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Truth:
    """(C, 4, 4) world-to-camera poses in OpenCV axes, and (P, 3) points with (P, 3) colours."""

    viewmats: np.ndarray
    xyz: np.ndarray
    rgb: np.ndarray

    def pixels(self, camera: int) -> np.ndarray:
        """(P, 2) where a pinhole shows the points."""
        seen = self.xyz @ self.viewmats[camera, :3, :3].T + self.viewmats[camera, :3, 3]
        return FOCAL * seen[:, :2] / seen[:, 2:] + [WIDTH / 2, HEIGHT / 2]


def truth(count: int = 9) -> Truth:
    random = np.random.default_rng(3)
    viewmats = []
    for angle in np.linspace(0, 2, count):
        position = np.array([4 * np.sin(angle), -1.0, -4 * np.cos(angle)])
        forward = -position / np.linalg.norm(position)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        viewmats.append(np.vstack([np.column_stack([rotation, -rotation @ position]), [0, 0, 0, 1]]))
    return Truth(np.array(viewmats), random.uniform(-0.5, 0.5, (7, 3)), random.integers(0, 256, (7, 3), np.uint8))


def image_name(index: int) -> str:
    return f"view {index:02d}.png"


def photograph(index: int, width: int = WIDTH, height: int = HEIGHT, mode: str = "RGB") -> Image.Image:
    depth = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, depth), np.uint8)
    return Image.fromarray(pixels[..., 0] if depth == 1 else pixels, mode)


def write_photographs(folder: Path, count: int = 9, mode: str = "RGB") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        photograph(index, mode=mode).save(folder / image_name(index))


def transforms(count: int = 9, **changes: Any) -> dict[str, Any]:
    """The record of a transforms.json; `changes` replace its top-level values, None takes one away."""
    record = {
        "fl_x": FOCAL,
        "fl_y": FOCAL,
        "cx": WIDTH / 2,
        "cy": HEIGHT / 2,
        "w": WIDTH,
        "h": HEIGHT,
        "frames": [
            {
                "file_path": f"./images/{image_name(index)}",
                "transform_matrix": (np.linalg.inv(viewmat) @ OPENGL).tolist(),
            }
            for index, viewmat in enumerate(truth(count).viewmats)
        ],
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


def write_transforms(folder: Path, record: dict[str, Any] | None = None, mode: str = "RGB") -> Path:
    """A folder with photographs and a transforms.json."""
    write_photographs(folder / "images", mode=mode)
    (folder / "transforms.json").write_text(json.dumps(record or transforms()))
    return folder


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z), as the eigenvector of Bar-Itzhack's matrix."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    return np.linalg.eigh(matrix)[1][:, -1]


MODELS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV": 4, "OPENCV_FISHEYE": 5, "FOV": 7}


def write_colmap_binary(folder: Path, model: str, parameters: list[float], count: int = 9) -> None:
    scene = truth(count)
    folder.mkdir(parents=True, exist_ok=True)
    camera = struct.pack(f"<QIiQQ{len(parameters)}d", 1, 5, MODELS[model], WIDTH, HEIGHT, *parameters)
    (folder / "cameras.bin").write_bytes(camera)
    images = struct.pack("<Q", count)
    # Not sorted by name: the reader must do that.
    for index in reversed(range(count)):
        viewmat = scene.viewmats[index]
        images += struct.pack("<I7dI", index + 1, *quaternion(viewmat[:3, :3]), *viewmat[:3, 3], 5)
        images += image_name(index).encode() + b"\0"
        observed = scene.pixels(index)[: index % 4]
        images += struct.pack("<Q", len(observed))
        for point, (x, y) in enumerate(observed):
            images += struct.pack("<ddq", x, y, point)
    (folder / "images.bin").write_bytes(images)
    points = struct.pack("<Q", len(scene.xyz))
    for point, (xyz, rgb) in enumerate(zip(scene.xyz, scene.rgb, strict=True)):
        points += struct.pack("<Q3d3BdQ", point, *xyz, *rgb, 0.5, point % 3)
        points += struct.pack(f"<{2 * (point % 3)}I", *range(2 * (point % 3)))
    (folder / "points3D.bin").write_bytes(points)


def write_colmap_text(folder: Path, model: str, parameters: list[float], count: int = 9) -> None:
    scene = truth(count)
    folder.mkdir(parents=True, exist_ok=True)
    values = " ".join(map(repr, parameters))
    (folder / "cameras.txt").write_text(f"# Camera list\n5 {model} {WIDTH} {HEIGHT} {values}\n")
    lines = ["# Image list", ""]
    for index in reversed(range(count)):
        viewmat = scene.viewmats[index]
        pose = " ".join(repr(float(value)) for value in (*quaternion(viewmat[:3, :3]), *viewmat[:3, 3]))
        lines.append(f"{index + 1} {pose} 5 {image_name(index)}")
        observed = scene.pixels(index)[: index % 4]
        lines.append(" ".join(f"{x} {y} {point}" for point, (x, y) in enumerate(observed)))
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    rows = [
        " ".join([str(point), *(repr(float(x)) for x in xyz), *map(str, rgb), "0.5", *["1"] * (2 * (point % 3))])
        for point, (xyz, rgb) in enumerate(zip(scene.xyz, scene.rgb, strict=True))
    ]
    (folder / "points3D.txt").write_text("\n".join(["# 3D point list", *rows]) + "\n")
