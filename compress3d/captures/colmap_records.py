"""What the rows of COLMAP's tables say, binary or text. Source: COLMAP's documentation, "Output Format"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Model(NamedTuple):
    """A camera model and how many parameters it has."""

    name: str
    parameters: int


MODELS = {
    0: Model("SIMPLE_PINHOLE", 3),
    1: Model("PINHOLE", 4),
    2: Model("SIMPLE_RADIAL", 4),
    3: Model("RADIAL", 5),
    4: Model("OPENCV", 8),
    5: Model("OPENCV_FISHEYE", 8),
    6: Model("FULL_OPENCV", 12),
    7: Model("FOV", 5),
    8: Model("SIMPLE_RADIAL_FISHEYE", 4),
    9: Model("RADIAL_FISHEYE", 5),
    10: Model("THIN_PRISM_FISHEYE", 12),
}
"""COLMAP's number of a camera model -> the model."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A row of the table of cameras: a number of `MODELS`, and the model's parameters."""

    model: int
    width: int
    height: int
    parameters: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """A row of the table of images: world-to-camera rotation (w, x, y, z) and translation."""

    name: str
    quaternion: tuple[float, float, float, float]
    translation: tuple[float, float, float]
    camera_id: int
