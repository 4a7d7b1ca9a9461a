"""open3d, imported where it is used: it is an optional part, and takes a while."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numba
import numpy as np
import torch

from compress3d.mesh.mesh import Mesh


def load_open3d() -> ModuleType:
    """The module.

    Raises:
        ModuleNotFoundError: it is not installed, or lacks libraries of the system.
    """
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise ModuleNotFoundError(
            f"this needs open3d ({error}): pip install 'secateur[mesh]', and on Debian or Ubuntu apt-get install "
            "libgl1 libusb-1.0-0 libgomp1"
        ) from error
    # Numba would take the TBB that open3d brings for one of its own, find it too old, and warn at the first kernel.
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]  # type: ignore[attr-defined]
    return open3d


def to_open3d(mesh: Mesh) -> Any:
    """An `open3d.geometry.TriangleMesh` of the same vertices and faces."""
    open3d = load_open3d()
    vertices = mesh.vertices.detach().cpu().double().numpy()
    return open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(vertices),
        open3d.utility.Vector3iVector(mesh.faces.cpu().numpy().astype(np.int32)),
    )


def from_open3d(other: Any) -> Mesh:
    """Vertices and faces of an `open3d.geometry.TriangleMesh`, float32.

    Raises:
        ValueError: a vertex is not finite, or a face names one that is not there.
    """
    vertices, faces = np.asarray(other.vertices, np.float32), np.asarray(other.triangles, np.int64)
    return Mesh(torch.from_numpy(vertices.reshape(-1, 3)), torch.from_numpy(faces.reshape(-1, 3)))


def decimated(mesh: Mesh, faces: int) -> Mesh:
    """At most about `faces` faces by quadric error metrics (Garland and Heckbert 1997), through open3d: the baseline.

    It merges vertices where that moves the surface least, and knows no picture: floaters and false fillings stay.

    Raises:
        ValueError: `faces` is below 1.
        ModuleNotFoundError: there is no open3d.
    """
    if faces < 1:
        raise ValueError(f"faces must be at least 1, got {faces}")
    return from_open3d(to_open3d(mesh).simplify_quadric_decimation(faces))
