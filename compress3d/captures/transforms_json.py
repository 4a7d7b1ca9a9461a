"""`transforms.json`, as instant-ngp's colmap2nerf and nerfstudio write it.

Camera-to-world poses in OpenGL axes (x right, y up, z back); intrinsics for all frames at the top or for one frame in
the frame. Poses and points stay in the file's world: nerfstudio's `applied_transform` and `applied_scale` tell what
was done to both of them before they were written. Sources: instant-ngp's docs/nerf_dataset_tips.md; nerfstudio's
documentation, "Data conventions".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress3d.captures.capture import StartPoints
from compress3d.captures.frames import Frame, FrameList, Part, inverse, name_inside, rigid
from compress3d.captures.lens import Lens
from compress3d.captures.photograph import SUFFIXES, image_size, is_image
from compress3d.captures.points_ply import read_points
from compress3d.splats.formats.checked_json import Json

FILE_NAME = "transforms.json"

_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "RADIAL", "SIMPLE_RADIAL")
_FISHEYE = "OPENCV_FISHEYE"


def find(folder: Path) -> Path | None:
    """The file in a folder of this format."""
    path = folder / FILE_NAME
    return path if path.is_file() else None


def read(path: Path) -> FrameList:
    """List the frames of a `transforms.json` of whatever name.

    Nerfstudio's `train_filenames` and `test_filenames` (`val_filenames` where there are none) are the split.

    Raises:
        FileNotFoundError: no such file, or none of the points' name.
        ValueError: the file, or a frame whose image is there, is not as the format asks for: it names file and frame.
    """
    document = Json.parse(path.read_bytes(), str(path))
    split = _file_split(document, path.parent)
    frames, missing = read_frames(document, path.parent, split)
    return FrameList(path, frames, missing, split is not None, _points(document, path.parent))


def read_frames(
    document: Json, folder: Path, split: dict[str, Part] | None = None, part: Part | None = None
) -> tuple[list[Frame], list[str]]:
    """The frames whose image is there, and the names of the others.

    Args:
        document: the whole file.
        folder: that the file's paths are relative to.
        split: name without "./" -> part of the capture; frames that it does not name have none.
        part: of all frames, where there is no `split`.

    Raises:
        ValueError: see `read`.
    """
    frames, missing = [], []
    for entry in document["frames"]:
        listed = entry["file_path"].text()
        with _naming(document, listed):
            named = name_inside(folder, listed)
            name = _existing(folder, named)
            if name is None:
                missing.append(listed)
                continue
            lens = _lens(entry, document, image_size(folder / name))
            viewmat = inverse(rigid(_opencv_pose(entry["transform_matrix"])))
            own_part = (split or {}).get(named, part)
            frames.append(Frame(name, folder / name, lens, viewmat, _mask(entry, folder), own_part))
    return frames, missing


def _existing(folder: Path, name: str) -> str | None:
    """The name, or the name with the suffix that it lacks, of an image that is there."""
    return next((name + suffix for suffix in ("", *SUFFIXES) if is_image(folder / (name + suffix))), None)


def _opencv_pose(matrix: Json) -> NDArray[np.float64]:
    """(3 or 4, 4) camera-to-world, with y and z turned from OpenGL's up and back to OpenCV's down and forward."""
    if len(matrix) not in (3, 4):
        raise ValueError(f"{matrix.where} must have 3 or 4 rows, got {len(matrix)}")
    return np.array([row.numbers(4) for row in matrix]) * [1, -1, -1, 1]


def _lens(entry: Json, document: Json, size: tuple[int, int]) -> Lens:
    def find(key: str) -> Json | None:
        found = entry.get(key)
        return document.get(key) if found is None else found

    def number(key: str, default: float) -> float:
        found = find(key)
        return default if found is None else found.number()

    declared = [find(key) for key in ("w", "h")]
    width, height = (size[axis] if found is None else found.integer(1, 1 << 20) for axis, found in enumerate(declared))
    fx = _focal(find("fl_x"), find("camera_angle_x"), find("x_fov"), width)
    fy = _focal(find("fl_y"), find("camera_angle_y"), find("y_fov"), height)
    if fx is None and fy is None:
        raise ValueError(f"{entry.where}: no focal length; expected fl_x or camera_angle_x")
    fx, fy = (fy if fx is None else fx), (fx if fy is None else fy)
    assert fx is not None and fy is not None
    fisheye = _is_fisheye(find("camera_model"), find("is_fisheye"))
    return Lens(
        width,
        height,
        fx,
        fy,
        number("cx", width / 2),
        number("cy", height / 2),
        numerator=tuple(number(f"k{i}", 0.0) for i in range(1, 5)),
        tangential=(0.0, 0.0) if fisheye else (number("p1", 0.0), number("p2", 0.0)),
        fisheye=fisheye,
    ).fitted(*size)


def _focal(focal: Json | None, radians: Json | None, degrees: Json | None, size: int) -> float | None:
    if focal is not None:
        return focal.number()
    angle = radians if radians is not None else degrees
    if angle is None:
        return None
    value = angle.number() if angle is radians else math.radians(angle.number())
    if not 0 < value < math.pi:
        raise ValueError(f"{angle.where} must be an angle above 0 and below 180 degrees, got {angle.number():g}")
    return 0.5 * size / math.tan(0.5 * value)


def _is_fisheye(model: Json | None, flag: Json | None) -> bool:
    name = "" if model is None else model.text()
    if name and name not in (*_PERSPECTIVE, _FISHEYE):
        raise ValueError(f"camera_model {name!r} is not supported; known are {', '.join(_PERSPECTIVE)}, {_FISHEYE}")
    if flag is not None and flag.value not in (True, False):
        raise ValueError(f"{flag.where} must be true or false")
    return name == _FISHEYE or (flag is not None and bool(flag.value))


def _mask(entry: Json, folder: Path) -> Path | None:
    found = entry.get("mask_path")
    if found is None:
        return None
    path = folder / name_inside(folder, found.text())
    if not is_image(path):
        raise ValueError(f"{found.where}: there is no mask {path}")
    return path


def _points(document: Json, folder: Path) -> StartPoints | None:
    found = document.get("ply_file_path")
    if found is None:
        return None
    try:
        path = folder / name_inside(folder, found.text())
    except ValueError as error:
        raise ValueError(f"{found.where}: {error}") from error
    if not is_image(path):
        raise FileNotFoundError(f"{found.where}: there is no file {path}")
    return read_points(path)


def _file_split(document: Json, folder: Path) -> dict[str, Part] | None:
    lists = {key: document.get(f"{key}_filenames") for key in ("train", "val", "test")}
    if lists["train"] is None or (lists["test"] is None and lists["val"] is None):
        return None
    split: dict[str, Part] = {}
    parts: tuple[tuple[Part, Json | None], ...] = (
        ("train", lists["train"]),
        ("test", lists["test"] if lists["test"] is not None else lists["val"]),
    )
    for part, names in parts:
        for name in names if names is not None else ():
            with _naming(document, name.text()):
                key = name_inside(folder, name.text())
            if split.setdefault(key, part) != part:
                raise ValueError(f"{name.where}: {key!r} is in the training and in the test split")
    return split


@contextmanager
def _naming(document: Json, frame: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        message = str(error).removeprefix(f"{document.file}: ")
        raise ValueError(f"{document.file}: frame {frame[:200]!r}: {message}") from error
