"""Coloured points in a PLY file, such as nerfstudio's `sparse_pc.ply`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compress3d.captures.capture import StartPoints
from compress3d.captures.frames import start_points
from compress3d.splats.formats.ply_elements import read_header, read_rows

_COLOURS = ("red", "green", "blue")
_GREY = 128


def read_points(path: Path) -> StartPoints | None:
    """Points with x, y, z and 8-bit red, green, blue (mid grey where there are none); None for an empty cloud.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a PLY, no x, y, z, or positions that are not finite.
    """
    header = read_header(path)
    vertex = header.element("vertex")
    if any(vertex.dtypes.get(axis) not in ("f4", "f8") for axis in "xyz"):
        raise ValueError(f"{path}: element 'vertex' must have x, y and z as float or double")
    has_colours = all(vertex.dtypes.get(colour) == "u1" for colour in _COLOURS)
    xyz, rgb = np.empty((vertex.count, 3)), np.full((vertex.count, 3), _GREY, np.uint8)
    for rows, block in read_rows(header, vertex):
        for column, axis in enumerate("xyz"):
            xyz[rows, column] = block[axis]
        for column, colour in enumerate(_COLOURS if has_colours else ()):
            rgb[rows, column] = block[colour]
    try:
        return start_points(xyz, rgb)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
