"""Meshes on disk: PLY here, OBJ and STL through open3d. Positions and faces alone; colours and normals are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from plyfile import PlyData, PlyParseError

from compress3d.mesh.library import from_open3d, load_open3d, to_open3d
from compress3d.mesh.mesh import Mesh
from compress3d.splats.formats.ply_elements import PlyHeader, read_header
from secateur.files import replacing_file

SUFFIXES = (".ply", ".obj", ".stl")
"""How meshes are named, in either case."""

MAX_BYTES = 1 << 30
"""A larger OBJ or STL is refused: open3d holds several times its size in memory."""


def read_mesh(path: str | Path) -> Mesh:
    """Read a mesh; polygons become fans of triangles.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a mesh, or one that is damaged: rows that the file is too short for, vertices that are not
            finite, faces that name vertices which are not there (the message counts them).
        ModuleNotFoundError: OBJ and STL need open3d.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return _read_ply(path) if suffix == ".ply" else _read_through_open3d(path)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def write_mesh(mesh: Mesh, path: str | Path) -> int:
    """Write a mesh in the format that the suffix says; returns the bytes. A PLY reads back bit for bit in float32.

    Raises:
        ValueError: no format has this suffix, or there are too many vertices for it.
        ModuleNotFoundError: OBJ and STL need open3d.
    """
    path = Path(path)
    if _suffix(path) == ".ply":
        with replacing_file(path) as temporary:
            temporary.write_bytes(_ply_bytes(mesh))
    else:
        other = to_open3d(mesh)
        # STL has a normal for each face, which open3d does not make by itself.
        other.compute_triangle_normals()
        with replacing_file(path) as temporary:
            if not load_open3d().io.write_triangle_mesh(str(temporary), other, write_vertex_normals=False):
                raise OSError(f"{path}: open3d could not write the mesh")
    return path.stat().st_size


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: not named as a mesh; known are {', '.join(SUFFIXES)}")
    return suffix


def _ply_bytes(mesh: Mesh) -> bytes:
    if len(mesh.vertices) > np.iinfo(np.int32).max:
        raise ValueError(f"a PLY of int indices holds at most 2^31 - 1 vertices, not {len(mesh.vertices)}")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(mesh.vertices)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"element face {len(mesh)}", "property list uchar int vertex_indices", "end_header", ""]
    faces = np.empty(len(mesh), np.dtype([("count", "u1"), ("corners", "<i4", 3)]))
    faces["count"], faces["corners"] = 3, mesh.faces.cpu().numpy()
    vertices = mesh.vertices.detach().cpu().numpy().astype("<f4")
    return "\n".join(lines).encode() + vertices.tobytes() + faces.tobytes()


def _read_ply(path: Path) -> Mesh:
    # The header first: what it declares is checked against the file's size before anything is allocated.
    name = _indices_name(read_header(path))
    try:
        data = _parsed(path, name)
        vertices = np.stack([np.asarray(data["vertex"][axis], np.float32) for axis in "xyz"], axis=1)
        faces = _triangles(data["face"].data[name])
    except (PlyParseError, KeyError, TypeError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"damaged PLY: {error}") from error
    return Mesh(torch.from_numpy(vertices), torch.from_numpy(faces))


def _parsed(path: Path, name: str) -> PlyData:
    try:
        # Rows of one length are read at once; with others this raises, and they are read one by one.
        return PlyData.read(str(path), mmap=False, known_list_len={"face": {name: 3}})
    except PlyParseError:
        return PlyData.read(str(path), mmap=False)


def _indices_name(header: PlyHeader) -> str:
    vertex, face = header.element("vertex"), header.element("face")
    if any(vertex.dtypes.get(axis) not in ("f4", "f8") for axis in "xyz"):
        raise ValueError(f"{header.path}: element 'vertex' must have x, y and z as float or double")
    for column in face.properties:
        if column.name in ("vertex_indices", "vertex_index") and column.length_dtype and column.dtype[0] in "iu":
            return column.name
    raise ValueError(f"{header.path}: element 'face' must have a list of integers 'vertex_indices'")


def _triangles(rows: np.ndarray) -> np.ndarray:
    """(F, 3) int64: polygon a, b, c, d, ... as a b c, a c d, ..."""
    if rows.ndim == 2 and rows.shape[1] == 3:
        return rows.astype(np.int64)
    sizes = np.array([len(row) for row in rows], np.int64)
    short = int((sizes < 3).sum())
    if short:
        raise ValueError(f"{short} of {len(sizes)} faces have fewer than three corners")
    if not len(sizes):
        return np.zeros((0, 3), np.int64)
    corners = np.concatenate(list(rows)).astype(np.int64)
    fans = sizes - 2
    first = np.repeat(np.cumsum(sizes) - sizes, fans)
    turn = np.arange(fans.sum()) - np.repeat(np.cumsum(fans) - fans, fans)
    return corners[np.stack([first, first + turn + 1, first + turn + 2], axis=1)]


def _read_through_open3d(path: Path) -> Mesh:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes are more than the {MAX_BYTES} that are read of this format; convert it to PLY")
    open3d: Any = load_open3d()
    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        # An STL names no vertices: corners at the same place are one.
        mesh = from_open3d(open3d.io.read_triangle_mesh(str(path)).remove_duplicated_vertices())
    if not len(mesh):
        raise ValueError("no faces could be read: not a mesh of this format, or damaged")
    return mesh
