"""COLMAP's binary tables, little-endian: a count, then rows, some of which end in a list.

No count is trusted before the file is long enough for it. Source: COLMAP's documentation, "Output Format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress3d.captures.colmap_records import MODELS, Camera, Image

_COUNT = struct.Struct("<Q")
_CAMERA = struct.Struct("<IiQQ")
_IMAGE = struct.Struct("<I4d3dI")
_OBSERVATION_BYTES = 24
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
_TRACK_ENTRY_BYTES = 8
_POINTS_PER_BLOCK = 1 << 16


def read_cameras(path: Path) -> dict[int, Camera]:
    """Cameras by their id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not hold what its counts say, or names a model that is not in `MODELS`.
    """
    table = _Table(path)
    cameras: dict[int, Camera] = {}
    for row in range(table.count(_CAMERA.size)):
        camera_id, model, width, height = table.take(_CAMERA, f"camera {row}")
        if model not in MODELS:
            raise ValueError(f"{path}: camera {row} has the model {model}; expected 0 to {max(MODELS)}")
        if camera_id in cameras:
            raise ValueError(f"{path}: camera {row} has the id {camera_id} of an earlier camera")
        parameters = table.take(struct.Struct(f"<{MODELS[model].parameters}d"), f"camera {row}")
        cameras[camera_id] = Camera(model, width, height, parameters)
    table.check_end()
    return cameras


def read_images(path: Path) -> list[Image]:
    """Images in the order of the file, without their observations.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not hold what its counts say.
    """
    table, images = _Table(path), []
    for row in range(table.count(_IMAGE.size + 1 + _COUNT.size)):
        _, *pose, camera_id = table.take(_IMAGE, f"image {row}")
        name = table.take_name(f"image {row}")
        table.skip(table.take(_COUNT, f"image {row}")[0] * _OBSERVATION_BYTES, f"image {row} ({name!r})")
        quaternion, translation = (pose[0], pose[1], pose[2], pose[3]), (pose[4], pose[5], pose[6])
        images.append(Image(name, quaternion, translation, camera_id))
    table.check_end()
    return images


def read_points(path: Path) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """(P, 3) positions and (P, 3) colours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not hold what its counts say.
    """
    table = _Table(path)
    count = table.count(_POINT.itemsize)
    xyz, rgb = np.empty((count, 3)), np.empty((count, 3), np.uint8)
    for rows, block in _point_blocks(table, count):
        xyz[rows], rgb[rows] = block["xyz"], block["rgb"]
    table.check_end()
    return xyz, rgb


def _point_blocks(table: _Table, count: int) -> Iterator[tuple[slice, NDArray[np.void]]]:
    """The fixed parts of the rows, gathered block by block from between their tracks."""
    fixed = np.arange(_POINT.itemsize)
    content = np.frombuffer(table.data, np.uint8)
    for start in range(0, count, _POINTS_PER_BLOCK):
        stop, offsets = min(start + _POINTS_PER_BLOCK, count), []
        for row in range(start, stop):
            offsets.append(table.offset)
            table.skip(_POINT.itemsize - _COUNT.size, f"point {row}")
            table.skip(table.take(_COUNT, f"point {row}")[0] * _TRACK_ENTRY_BYTES, f"point {row}")
        rows = content[np.array(offsets)[:, None] + fixed]
        yield slice(start, stop), rows.view(_POINT)[:, 0]


class _Table:
    """A file that is read from its start to its end, never beyond."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.offset = 0

    def count(self, row_bytes: int) -> int:
        """How many rows of at least so many bytes the file says that it has."""
        count = int(self.take(_COUNT, "the count")[0])
        left = len(self.data) - self.offset
        if count * row_bytes > left:
            raise ValueError(
                f"{self.path}: {count} rows of at least {row_bytes} bytes are declared, but {left} bytes follow: "
                f"the file is cut short or its count is wrong"
            )
        return count

    def take(self, layout: struct.Struct, what: str) -> tuple:
        start = self.offset
        self.skip(layout.size, what)
        return layout.unpack_from(self.data, start)

    def take_name(self, what: str) -> str:
        end = self.data.find(b"\0", self.offset)
        if end < 0:
            raise ValueError(f"{self.path}: {what}: the name at byte {self.offset} does not end")
        name = self.data[self.offset : end].decode("utf-8", errors="replace")
        self.offset = end + 1
        return name

    def skip(self, count: int, what: str) -> None:
        left = len(self.data) - self.offset
        if count > left:
            raise ValueError(f"{self.path}: {what}: {count} bytes are needed at byte {self.offset}, {left} are left")
        self.offset += count

    def check_end(self) -> None:
        left = len(self.data) - self.offset
        if left:
            raise ValueError(f"{self.path}: {left} bytes are left after the last row: the count is wrong")
