"""What every format's reader hands on: frames whose image is there, not yet read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray

from compress3d.captures.capture import StartPoints
from compress3d.captures.lens import Lens

Part = Literal["train", "test"]

_ROTATION_TOLERANCE = 0.01
_FARTHEST = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A posed photograph on disk.

    Args:
        name: the image's path as its capture gives it, with "/" between folders; unique in the capture.
        image: where the file is.
        lens: for the file's size.
        viewmat: (4, 4) float64 world-to-camera, OpenCV axes.
        mask: an image that is black where pixels are to be ignored, or None.
        part: what the capture's own split says of the frame, or None.
    """

    name: str
    image: Path
    lens: Lens
    viewmat: NDArray[np.float64]
    mask: Path | None = None
    part: Part | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FrameList:
    """A capture on disk.

    Args:
        file: what lists the frames, for messages.
        frames: those whose image is there.
        missing: names of those whose image is not.
        has_split: whether the capture says which frames are for training and which for testing.
        points: to start a scene from, or None.
    """

    file: Path
    frames: list[Frame]
    missing: list[str]
    has_split: bool = False
    points: StartPoints | None = None


def name_inside(folder: Path, name: str) -> str:
    """The path that a capture in `folder` gives a file, relative to the folder, with "/" and without "." and "..".

    Raises:
        ValueError: it leads out of the folder.
    """
    top = Path(os.path.normpath(folder.absolute()))
    path = Path(os.path.normpath(top / name.replace("\\", "/")))
    # A NUL would end the path early for some of what looks at it.
    if "\0" in name or path == top or not path.is_relative_to(top):
        raise ValueError(f"the path {name[:200]!r} leads out of the capture's folder")
    return path.relative_to(top).as_posix()


def rigid(matrix: Float64[np.ndarray, "rows 4"]) -> Float64[np.ndarray, "4 4"]:
    """A (3 or 4, 4) transform with its rotation part made exactly a rotation.

    Raises:
        ValueError: it is not finite, too far off, or not a rotation and a translation to within 1 %.
    """
    if not np.isfinite(matrix).all():
        raise ValueError("the pose is not finite")
    if len(matrix) == 4 and not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
        raise ValueError(f"the pose's last row must be 0 0 0 1, got {matrix[3].tolist()}")
    if np.abs(matrix[:3, 3]).max() > _FARTHEST:
        raise ValueError(f"the pose's translation {matrix[:3, 3].tolist()} is beyond {_FARTHEST:g}")
    rotation = matrix[:3, :3]
    if np.abs(rotation).max() > 2:
        raise ValueError("the pose's upper left 3x3 is not a rotation: an entry is beyond 1")
    left, stretch, right = np.linalg.svd(rotation)
    if np.abs(stretch - 1).max() > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise ValueError(
            f"the pose's upper left 3x3 is not a rotation: it stretches by {stretch.round(4).tolist()} "
            f"and has the determinant {np.linalg.det(rotation):.4g}"
        )
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = left @ right, matrix[:3, 3]
    return pose


def inverse(pose: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    """The inverse of a rigid transform."""
    inverted = np.eye(4)
    inverted[:3, :3] = pose[:3, :3].T
    inverted[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverted


def start_points(xyz: Float64[np.ndarray, "P 3"], rgb: NDArray[np.uint8]) -> StartPoints | None:
    """Points as a scene starts from them; None where there are none.

    Raises:
        ValueError: a position is not finite.
    """
    wrong = np.flatnonzero(~(np.abs(xyz) <= _FARTHEST).all(axis=1))
    if len(wrong):
        raise ValueError(f"point {wrong[0]} lies at {xyz[wrong[0]].tolist()}; expected finite coordinates")
    if not len(xyz):
        return None
    return StartPoints(torch.from_numpy(xyz.astype(np.float32)), torch.from_numpy(np.ascontiguousarray(rgb)))
