"""Camera paths: between our cameras and viser's poses, and along views as a smooth flight."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, Slerp

from compress3d.cameras import Cameras


class Pose(NamedTuple):
    """A camera as viser has it.

    Args:
        wxyz: (4,) rotation from camera axes (OpenCV) to the world.
        position: (3,) in world units.
        fov: vertical field of view in radians.
    """

    wxyz: Float[np.ndarray, " 4"]
    position: Float[np.ndarray, " 3"]
    fov: float


def camera_at(pose: Pose, width: int, height: int) -> Cameras:
    """A batch of one camera with square pixels, whose principal point is the middle of a `width` x `height` image."""
    viewmat = np.eye(4)
    viewmat[:3, :3] = _rotation(pose.wxyz).as_matrix().T
    viewmat[:3, 3] = -viewmat[:3, :3] @ pose.position
    focal = 0.5 * height / np.tan(0.5 * pose.fov)
    K = np.array([[focal, 0, 0.5 * width], [0, focal, 0.5 * height], [0, 0, 1]])
    viewmats, Ks = (torch.from_numpy(matrix.astype(np.float32))[None] for matrix in (viewmat, K))
    return Cameras(viewmats, Ks, width, height)


def pose_of(cameras: Cameras, index: int) -> Pose:
    """Camera `index` of a batch; viser has no principal point, so that an image off its middle is not kept."""
    viewmat = cameras.viewmats[index].double().numpy()
    fov = 2 * np.arctan(0.5 * cameras.height / float(cameras.Ks[index, 1, 1]))
    return Pose(_wxyz(Rotation.from_matrix(viewmat[:3, :3].T)), -viewmat[:3, :3].T @ viewmat[:3, 3], float(fov))


def joined(views: list[Cameras]) -> Cameras:
    """Batches in one, in order, at the image size of the first: vertical fields of view stay, widths are cut or grown.

    Raises:
        ValueError: there is none.
    """
    if not views:
        raise ValueError("no view is recorded: add one first")
    width, height = views[0].width, views[0].height
    poses = [pose_of(view, index) for view in views for index in range(len(view))]
    resized = [camera_at(pose, width, height) for pose in poses]
    return Cameras(torch.cat([one.viewmats for one in resized]), torch.cat([one.Ks for one in resized]), width, height)


def as_json(cameras: Cameras) -> bytes:
    """The file that `secateur splat render --camera` reads."""
    return (json.dumps(cameras.to_json(), indent=1) + "\n").encode()


class Flight:
    """A smooth flight through views: positions on a cubic spline, rotations on great arcs.

    Args:
        cameras: the views, at least one, reached at even times.
        closed: whether it goes on from the last view to the first.
    """

    def __init__(self, cameras: Cameras, closed: bool) -> None:
        poses = [pose_of(cameras, index) for index in range(len(cameras))]
        closed = closed and len(poses) > 1
        if len(poses) == 1 or closed:
            poses.append(poses[0])
        times = np.linspace(0, 1, len(poses))
        positions = np.stack([pose.position for pose in poses])
        self._positions = CubicSpline(times, positions, bc_type="periodic" if closed else "natural")
        self._rotations = Slerp(times, _rotation(np.stack([pose.wxyz for pose in poses])))
        self._fovs = np.array([pose.fov for pose in poses])
        self._times = times

    def at(self, time: float) -> Pose:
        """The pose at `time`, 0 (the first view) to 1 (the last, or the first again)."""
        time = float(np.clip(time, 0, 1))
        return Pose(
            _wxyz(self._rotations(time)), self._positions(time), float(np.interp(time, self._times, self._fovs))
        )


def _rotation(wxyz: np.ndarray) -> Rotation:
    return Rotation.from_quat(wxyz[..., [1, 2, 3, 0]])


def _wxyz(rotation: Rotation) -> np.ndarray:
    return rotation.as_quat()[..., [3, 0, 1, 2]]
