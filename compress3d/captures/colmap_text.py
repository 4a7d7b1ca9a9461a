"""COLMAP's text tables: a row a line (an image takes two), "#" for comments.

Source: COLMAP's documentation, "Output Format".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress3d.captures.colmap_records import MODELS, Camera, Image

_NUMBERS = {model.name: number for number, model in MODELS.items()}


def read_cameras(path: Path) -> dict[int, Camera]:
    """Cameras by their id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a camera, or names a model that is not in `MODELS`.
    """
    cameras: dict[int, Camera] = {}
    for line, text in _rows(path):
        with _naming(path, line, "CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"):
            key, model, width, height, *values = text.split()
            if model not in _NUMBERS:
                raise ValueError(f"the camera model {model!r} is unknown; known are {', '.join(_NUMBERS)}")
            wanted = MODELS[_NUMBERS[model]].parameters
            if len(values) != wanted:
                raise ValueError(f"{model} has {wanted} parameters, got {len(values)}")
            if int(key) in cameras:
                raise ValueError(f"the id {key} is that of an earlier camera")
            cameras[int(key)] = Camera(_NUMBERS[model], int(width), int(height), tuple(map(float, values)))
    return cameras


def read_images(path: Path) -> list[Image]:
    """Images in the order of the file, without their observations.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not an image.
    """
    images = []
    rows = _rows(path, keep_blank_after_row=True)
    for line, text in rows:
        with _naming(path, line, "IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"):
            _, qw, qx, qy, qz, tx, ty, tz, camera_id, name = text.split(maxsplit=9)
            quaternion, translation = (float(qw), float(qx), float(qy), float(qz)), (float(tx), float(ty), float(tz))
            images.append(Image(name.strip(), quaternion, translation, int(camera_id)))
        next(rows, None)
    return images


def read_points(path: Path) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """(P, 3) positions and (P, 3) colours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a point.
    """
    xyz, rgb = [], []
    for line, text in _rows(path):
        with _naming(path, line, "POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]"):
            _, x, y, z, red, green, blue, _ = text.split(maxsplit=8)[:8]
            colour = (int(red), int(green), int(blue))
            if not 0 <= min(colour) <= max(colour) <= 255:
                raise ValueError(f"the colour {colour} must be 0 to 255")
            xyz.append((float(x), float(y), float(z)))
            rgb.append(colour)
    return np.array(xyz, np.float64).reshape(-1, 3), np.array(rgb, np.uint8).reshape(-1, 3)


def _rows(path: Path, keep_blank_after_row: bool = False) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and lines without comments and blank ones.

    Args:
        path: the file.
        keep_blank_after_row: the line after each row belongs to it, and may be blank: an image without observations.
    """
    belongs = False
    with path.open(encoding="utf-8", errors="replace") as file:
        for line, text in enumerate(file, 1):
            if belongs:
                belongs = False
                yield line, text
            elif text.strip() and not text.lstrip().startswith("#"):
                belongs = keep_blank_after_row
                yield line, text


@contextmanager
def _naming(path: Path, line: int, wanted: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: line {line}: {error} (expected {wanted})") from error
