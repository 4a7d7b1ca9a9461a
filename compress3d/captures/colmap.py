"""COLMAP's sparse models: cameras, images and points3D, binary or text, and an `images` folder.

Poses are world-to-camera in OpenCV axes, and the centre of the first pixel is at (0.5, 0.5): nothing to convert.
Source: COLMAP's documentation, "Output Format" and "Camera Models".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress3d.captures import colmap_binary, colmap_text
from compress3d.captures.capture import StartPoints
from compress3d.captures.colmap_records import MODELS, Camera, Image
from compress3d.captures.frames import Frame, FrameList, name_inside, rigid, start_points
from compress3d.captures.lens import Lens
from compress3d.captures.photograph import image_size, is_image

_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", ".")
_IMAGES = "images"
_QUATERNION_TOLERANCE = 0.01


def find(folder: Path) -> Path | None:
    """The images file of a capture's model: the binary one where there are both, of the first folder that has one."""
    for place in _FOLDERS:
        for suffix in ("bin", "txt"):
            if all((folder / place / f"{table}.{suffix}").is_file() for table in ("cameras", "images")):
                return folder / place / f"images.{suffix}"
    return None


def read(path: Path, folder: Path) -> FrameList:
    """List the frames of the model whose images file is `path`; the photographs are in `folder`/images.

    Raises:
        FileNotFoundError: a file is absent; points3D may be.
        ValueError: a file, or a frame whose image is there, is not as the format asks for: it names file and frame.
    """
    table = colmap_binary if path.suffix == ".bin" else colmap_text
    cameras = table.read_cameras(path.with_stem("cameras"))
    frames, missing = [], []
    for record in table.read_images(path):
        try:
            name = name_inside(folder, f"{_IMAGES}/{record.name}")
            if not is_image(folder / name):
                missing.append(record.name)
                continue
            frames.append(_frame(record, cameras, folder, name))
        except ValueError as error:
            raise ValueError(f"{path}: frame {record.name[:200]!r}: {error}") from error
    return FrameList(path, frames, missing, points=_points(path.with_stem("points3D"), table.read_points))


def _frame(record: Image, cameras: dict[int, Camera], folder: Path, name: str) -> Frame:
    camera = cameras.get(record.camera_id)
    if camera is None:
        raise ValueError(f"there is no camera {record.camera_id}; there are {len(cameras)} others")
    image = folder / name
    lens = _lens(camera).fitted(*image_size(image))
    return Frame(name, image, lens, rigid(_pose(record)))


def _pose(record: Image) -> NDArray[np.float64]:
    """(3, 4) world-to-camera."""
    length = np.linalg.norm(record.quaternion)
    if not abs(length - 1) <= _QUATERNION_TOLERANCE:
        raise ValueError(f"the pose's quaternion {list(record.quaternion)} must have length 1, it has {length:.4g}")
    w, x, y, z = np.array(record.quaternion) / length
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.hstack([rotation, np.array(record.translation)[:, None]])


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a camera model's parameters mean: one or two focal lengths, cx, cy, and then these."""

    focals: int
    radial: tuple[int, ...] = ()
    tangential: tuple[int, int] | None = None
    denominator: tuple[int, ...] = ()
    fisheye: bool = False


_LAYOUTS = {
    "SIMPLE_PINHOLE": _Layout(1),
    "PINHOLE": _Layout(2),
    "SIMPLE_RADIAL": _Layout(1, (3,)),
    "RADIAL": _Layout(1, (3, 4)),
    "OPENCV": _Layout(2, (4, 5), (6, 7)),
    "FULL_OPENCV": _Layout(2, (4, 5, 8), (6, 7), (9, 10, 11)),
    "OPENCV_FISHEYE": _Layout(2, (4, 5, 6, 7), fisheye=True),
    "SIMPLE_RADIAL_FISHEYE": _Layout(1, (3,), fisheye=True),
    "RADIAL_FISHEYE": _Layout(1, (3, 4), fisheye=True),
}


def _lens(camera: Camera) -> Lens:
    model = MODELS[camera.model].name
    layout = _LAYOUTS.get(model)
    if layout is None:
        raise ValueError(f"the camera model {model} is not supported; known are {', '.join(_LAYOUTS)}")
    values = camera.parameters
    first, second = layout.tangential or (0, 0)
    return Lens(
        camera.width,
        camera.height,
        fx=values[0],
        fy=values[layout.focals - 1],
        cx=values[layout.focals],
        cy=values[layout.focals + 1],
        numerator=tuple(values[i] for i in layout.radial),
        denominator=tuple(values[i] for i in layout.denominator),
        tangential=(values[first], values[second]) if layout.tangential else (0.0, 0.0),
        fisheye=layout.fisheye,
    )


def _points(
    path: Path, read_points: Callable[[Path], tuple[NDArray[np.float64], NDArray[np.uint8]]]
) -> StartPoints | None:
    if not path.is_file():
        return None
    xyz, rgb = read_points(path)
    try:
        return start_points(xyz, rgb)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
