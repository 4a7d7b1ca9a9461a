"""The CPU backend: one camera at a time through the numba kernels, on the tensors' own memory."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import torch
from torch import Tensor

from compress3d.splats.rasterize.blend import blend
from compress3d.splats.rasterize.harmonics import project_colors
from compress3d.splats.rasterize.project import project
from compress3d.splats.rasterize.tiles import TileLists, list_tiles


class Gaussians(NamedTuple):
    """Activated Gaussians: means (N, 3), quats (N, 4), scales (N, 3) linear, opacities (N,) in [0, 1]."""

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray


class Projection(NamedTuple):
    """What one camera sees of each Gaussian; see `project`."""

    means2d: np.ndarray
    conics: np.ndarray
    depths: np.ndarray
    peaks: np.ndarray
    radii: np.ndarray


class View(NamedTuple):
    """One camera as numpy: viewmat (4, 4), K (3, 3), image size in pixels."""

    viewmat: np.ndarray
    K: np.ndarray
    width: int
    height: int

    @property
    def position(self) -> np.ndarray:
        """(3,) camera centre."""
        return (-self.viewmat[:3, :3].T @ self.viewmat[:3, 3]).astype(np.float32)


class Lens(NamedTuple):
    """Options of the projection; names as in `rasterization`."""

    near_plane: float = 0.01
    far_plane: float = 1e10
    eps2d: float = 0.3
    radius_clip: float = 0.0
    antialiased: bool = False


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as a float32 C-contiguous numpy array; a copy only where it is neither."""
    return tensor.detach().to(torch.float32).contiguous().numpy()


def project_view(gaussians: Gaussians, view: View, lens: Lens) -> tuple[Projection, TileLists]:
    """Project, sort and list by tile for one camera."""
    projection = project_arrays(*gaussians, view, lens)
    return projection, list_tiles(*projection, view.width, view.height)


def project_arrays(
    means: np.ndarray, quats: np.ndarray, scales: np.ndarray, opacities: np.ndarray, view: View, lens: Lens
) -> Projection:
    """Project for one camera; arguments as `project` names them."""
    near, far, eps2d, radius_clip = (np.float32(value) for value in lens[:4])
    options = (near, far, eps2d, radius_clip, lens.antialiased)
    return Projection(
        *project(means, quats, scales, opacities, view.viewmat, view.K, view.width, view.height, *options)
    )


def view_colors(
    gaussians: Gaussians, sh0: np.ndarray, shN: np.ndarray, degree: int, view: View, order: np.ndarray
) -> np.ndarray:
    """(M, 3) colours towards one camera of the Gaussians at `order`, from (N, 1, 3) and (N, K, 3) coefficients."""
    return project_colors(gaussians.means, sh0, shN, view.position, degree, order)


_NOT_WANTED = np.empty(0, np.float32)


def blend_view(
    tiles: TileLists, colors: np.ndarray, background: np.ndarray, view: View, sums_of_weights: np.ndarray = _NOT_WANTED
) -> tuple[np.ndarray, np.ndarray]:
    """Composite (M, D) colours, in the order of the tile lists: image (H, W, D) and alpha (H, W).

    `sums_of_weights` ((intersections,) float32), where it is given, takes the sum of the weights of each.
    """
    return blend(
        tiles.ellipses,
        tiles.starts,
        tiles.ranks,
        np.ascontiguousarray(colors),
        background,
        view.width,
        view.height,
        nb.get_num_threads(),
        sums_of_weights,
    )
