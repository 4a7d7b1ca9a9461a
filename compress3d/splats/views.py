"""Cameras for scenes that come without any: sampled by the scene's shape, deterministic, in the OpenCV convention.

Two layouts. `outside_in` suits an object: cameras on a band of the sphere around it, looking in. `inside_out` suits a
room or an outdoor capture: cameras in free space within it, looking around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.scene import SplatScene

Layout = Literal["auto", "outside_in", "inside_out"]
Vector = tuple[float, float, float]

UP: Vector = (0.0, -1.0, 0.0)
"""Scenes in the frame of an INRIA PLY are y-down: their up points to negative y."""
AXES: dict[str, Vector] = {
    "x": (1.0, 0.0, 0.0),
    "-x": (-1.0, 0.0, 0.0),
    "y": (0.0, 1.0, 0.0),
    "-y": UP,
    "z": (0.0, 0.0, 1.0),
    "-z": (0.0, 0.0, -1.0),
}
"""World directions as the command line names them."""

_SAMPLE = 20_000
_GOLDEN = (math.sqrt(5) - 1) / 2
# Generalised golden ratios (Roberts 2018, the R_d sequence): additive recurrences that fill the cube evenly.
_R3 = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)


@dataclass(frozen=True, slots=True)
class SceneShape:
    """Where a scene is, robust to floaters.

    Args:
        centre: (3,) float64, the middle of the 2..98 % quantile bounds of the means, weighted by opacity.
        half_size: (3,) float64, half the size of these bounds, in world units.
        radius: half the diagonal of these bounds, in world units.
        median_radius: opacity-weighted median distance of the means from `middle`.
        middle: (3,) float64, the opacity-weighted median of the means.
        layout: "outside_in" or "inside_out".
    """

    centre: np.ndarray
    half_size: np.ndarray
    radius: float
    median_radius: float
    middle: np.ndarray
    layout: Literal["outside_in", "inside_out"]


def sample_views(
    scene: SplatScene,
    count: int,
    width: int,
    height: int,
    seed: int = 0,
    layout: Layout = "auto",
    up: Vector = UP,
) -> Cameras:
    """Cameras that see the scene the way people will look at it.

    Args:
        scene: what to look at.
        count: number of cameras.
        width: image width in pixels.
        height: image height in pixels.
        seed: another seed gives other views of the same layout; the same seed gives the same views.
        layout: "auto" decides by `scene_shape`.
        up: world direction that is up in the images.

    Returns:
        `count` cameras; every second one (`split_views`) covers the scene as evenly as all of them.

    Raises:
        ValueError: the scene has no visible Gaussian, or count is less than one.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    shape = scene_shape(scene, up)
    chosen = shape.layout if layout == "auto" else layout
    shift = np.random.default_rng(seed).random(4)
    if chosen == "outside_in":
        return _outside_in(shape, count, width, height, shift, up)
    return _inside_out(scene, shape, count, width, height, shift, up)


def orbit(
    scene: SplatScene,
    count: int,
    width: int,
    height: int,
    elevation_degrees: float = 15.0,
    field_of_view_degrees: float = 40.0,
    distance: float = 2.2,
    azimuth_degrees: float = 0.0,
    up: Vector = UP,
) -> Cameras:
    """One turn around the scene, for pictures.

    Args:
        scene: what to look at.
        count: number of cameras, evenly spaced in azimuth.
        width: image width in pixels.
        height: image height in pixels.
        elevation_degrees: height of the cameras above the horizon.
        field_of_view_degrees: of the shorter side of the image.
        distance: from the centre, in radii of `scene_shape`.
        azimuth_degrees: of the first camera.
        up: world direction that is up in the images.

    Raises:
        ValueError: the scene has no visible Gaussian, or count is less than one.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    shape = scene_shape(scene, up)
    azimuths = np.radians(azimuth_degrees) + np.arange(count) * (2 * np.pi / count)
    directions = _directions(azimuths, np.full(count, np.radians(elevation_degrees)), up)
    positions = shape.centre + distance * shape.radius * directions
    viewmats = look_at(positions, np.broadcast_to(shape.centre, (count, 3)), up)
    return Cameras(viewmats, _intrinsics(np.full(count, field_of_view_degrees), width, height), width, height)


def split_views(cameras: Cameras) -> tuple[Cameras, Cameras]:
    """Half of the cameras to score and recover with, and the other half, held out, to judge with (interleaved).

    Raises:
        ValueError: there are fewer than two cameras.
    """
    if len(cameras) < 2:
        raise ValueError(f"at least two cameras are needed to hold one out, got {len(cameras)}")
    return cameras[0::2], cameras[1::2]


def look_at(positions: np.ndarray, targets: np.ndarray, up: Vector = UP) -> Float[Tensor, "C 4 4"]:
    """World-to-camera matrices of cameras at `positions` (C, 3) that look at `targets` (C, 3), without roll.

    A camera that looks along `up` takes any other direction for its up.
    """
    forward = _unit(np.asarray(targets, float) - positions)
    upward = _unit(np.asarray(up, float))
    parallel = np.abs(forward @ upward) > 1 - 1e-9
    upward = np.where(parallel[:, None], _sideways(upward), upward)
    right = _unit(np.cross(forward, upward))
    down = np.cross(forward, right)
    viewmats = np.zeros((len(forward), 4, 4))
    viewmats[:, :3, :3] = np.stack([right, down, forward], axis=1)
    viewmats[:, :3, 3] = -np.einsum("cij,cj->ci", viewmats[:, :3, :3], positions)
    viewmats[:, 3, 3] = 1
    return torch.from_numpy(viewmats.astype(np.float32))


def scene_shape(scene: SplatScene, up: Vector = UP) -> SceneShape:
    """Bounds of a scene, and whether it is looked at from outside or from inside.

    The layout is "inside_out" when one of two things holds:

    - far background: 1 % of the opacity lies farther than 4 median radii from the middle (an object cut out of its
      capture has about 1.5 to 2; an outdoor capture 10 and more);
    - a room: seen from the middle, 95 % of all directions end on the scene, less than 2 % of the opacity lies within
      0.4 median radii, and above the middle, what lies off the walls lies outside rather than inside (cameras have
      cleaned the side that they flew in; the other side keeps the leftovers of the optimisation).

    A closed, hollow, perfectly clean object cannot be told from a room: pass the layout for it.

    Raises:
        ValueError: the scene has no Gaussian with finite parameters and an opacity above 0.
    """
    means, weights, sizes = _visible(scene)
    low, high = _weighted_quantiles(means, weights, (0.02, 0.98))
    middle = _weighted_quantiles(means, weights, (0.5,))[0]
    largest = float(_weighted_quantiles(sizes[:, None], weights, (0.5,))[0, 0])
    radius = max(float(np.linalg.norm(high - low)) / 2, 3 * largest)
    distances = np.linalg.norm(means - middle, axis=1)
    median, far = _weighted_quantiles(distances[:, None], weights, (0.5, 0.99))[:, 0]
    inside = far > 4 * max(median, 1e-12) or _is_room(means - middle, weights, median, up)
    layout: Literal["outside_in", "inside_out"] = "inside_out" if inside else "outside_in"
    return SceneShape((low + high) / 2, (high - low) / 2, radius, float(median), middle, layout)


def _visible(scene: SplatScene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 means (M, 3), opacities (M,) and largest standard deviations (M,) of at most 200,000 Gaussians."""
    stride = max(1, len(scene) // 200_000)
    means = scene.means[::stride].detach().cpu().double().numpy()
    opacities = torch.sigmoid(scene.opacities[::stride].detach().cpu().double()).numpy()
    sizes = torch.exp(scene.scales[::stride].detach().cpu().double().amax(dim=1)).numpy()
    usable = np.isfinite(means).all(axis=1) & np.isfinite(sizes) & (np.nan_to_num(opacities) > 0)
    if not usable.any():
        raise ValueError(
            f"none of the scene's {len(scene)} Gaussians is finite and visible, so there is nothing to see"
        )
    return means[usable], opacities[usable], sizes[usable]


def _weighted_quantiles(values: np.ndarray, weights: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """(len(levels), D) quantiles of each column of `values` (M, D)."""
    columns = []
    for column in values.T:
        order = np.argsort(column, kind="stable")
        mass = np.cumsum(weights[order])
        positions = np.searchsorted(mass, np.asarray(levels) * mass[-1])
        columns.append(column[order][np.minimum(positions, len(column) - 1)])
    return np.stack(columns, axis=1)


def _is_room(offsets: np.ndarray, weights: np.ndarray, median: float, up: Vector) -> bool:
    """See `scene_shape`. `offsets` (M, 3) are the means relative to the middle."""
    distances = np.linalg.norm(offsets, axis=1)
    if weights[distances < 0.4 * median].sum() >= 0.02 * weights.sum():
        return False
    axes = _fibonacci_sphere(256)
    nearest = cKDTree(axes).query(offsets / np.maximum(distances, 1e-12)[:, None], workers=-1)[1]
    covered = np.bincount(nearest, weights * (distances > 0.4 * median), minlength=len(axes)) > 0.5
    if covered.mean() < 0.95:
        return False
    walls = np.array([np.median(distances[nearest == axis]) if covered[axis] else np.inf for axis in range(len(axes))])
    above = (offsets @ _unit(np.asarray(up, float)))[covered[nearest]] > 0
    relative = (distances / walls[nearest])[covered[nearest]][above]
    return bool((relative > 1.3).sum() >= (relative < 0.7).sum())


def _outside_in(shape: SceneShape, count: int, width: int, height: int, shift: np.ndarray, up: Vector) -> Cameras:
    """A Fibonacci band from 10 degrees below the horizon to 65 above it, at distances that fill the image.

    One view in five comes close (1.0 to 1.5 radii), the others stand at 1.5 to 2.5 radii; each looks at a point in the
    middle 40 % of the bounds, so that the ends of long objects are seen too, with a field of view of 35 to 45 degrees
    of the shorter side.
    """
    index = np.arange(count)
    sines = np.sin(np.radians([-10.0, 65.0]))
    elevations = np.arcsin(sines[0] + (sines[1] - sines[0]) * (index + 0.5) / count)
    azimuths = 2 * np.pi * (index * _GOLDEN + shift[0])
    vary = np.mod(shift[1:] + index[:, None] * _R3, 1.0)
    close = index % 5 == 3
    distances = shape.radius * np.where(close, 1.0 + 0.5 * vary[:, 0], 1.5 + vary[:, 0])
    targets = shape.centre + 0.4 * shape.half_size * (2 * vary - 1)
    positions = shape.centre + distances[:, None] * _directions(azimuths, elevations, up)
    return Cameras(look_at(positions, targets, up), _intrinsics(35 + 10 * vary[:, 1], width, height), width, height)


def _inside_out(
    scene: SplatScene, shape: SceneShape, count: int, width: int, height: int, shift: np.ndarray, up: Vector
) -> Cameras:
    """Free-space positions; half of the views look at the middle, the others look around."""
    positions = _free_positions(scene, shape, count, shift, up)
    index = np.arange(count)
    vary = np.mod(shift[1:] + index[:, None] * _R3, 1.0)
    azimuths = 2 * np.pi * (index * _GOLDEN + shift[0])
    around = positions + _directions(azimuths, np.radians(-30 + 55 * vary[:, 0]), up) * shape.median_radius
    near_middle = shape.middle + 0.3 * shape.median_radius * (2 * vary - 1)
    # Pairs, so that each half of `split_views` has both kinds.
    inward = ((index // 2) % 2 == 0)[:, None] & (np.linalg.norm(near_middle - positions, axis=1) > 1e-6)[:, None]
    targets = np.where(inward, near_middle, around)
    return Cameras(look_at(positions, targets, up), _intrinsics(55 + 20 * vary[:, 1], width, height), width, height)


def _free_positions(scene: SplatScene, shape: SceneShape, count: int, shift: np.ndarray, up: Vector) -> np.ndarray:
    """(count, 3) positions inside the scene with free space around them, spread over its core.

    Of some 32 candidates a camera in the ball of two median radii, those count that have something below them and on
    all four sides. The quarter with the most clearance from opaque Gaussians is kept, and farthest-point sampling picks
    from it.
    """
    means, weights, _ = _visible(scene)
    solid = means[weights > 0.3] if (weights > 0.3).any() else means
    solid = solid[:: max(1, len(solid) // _SAMPLE)]
    cube = 2 * np.mod(shift[1:] + np.arange(64 * count)[:, None] * _R3, 1.0) - 1
    offsets = 2 * shape.median_radius * cube[np.linalg.norm(cube, axis=1) < 1]
    clearance = cKDTree(solid).query(shape.middle + offsets, workers=-1)[0]
    inside = _is_surrounded(shape.middle + offsets, solid[:: max(1, len(solid) // 4000)], up)
    preference = np.where(inside, clearance, -np.linalg.norm(offsets, axis=1))
    most = max(count, int(inside.sum()) // 4)
    candidates = shape.middle + offsets[np.argsort(-preference, kind="stable")[:most]]
    chosen = [0]
    apart = np.linalg.norm(candidates - candidates[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(candidates - candidates[chosen[-1]], axis=1))
    return candidates[chosen]


def _is_surrounded(candidates: np.ndarray, points: np.ndarray, up: Vector, share: float = 0.002) -> np.ndarray:
    """(C,) bool: at least `share` of the points lie within 45 degrees of straight down, and of each of four sides."""
    upward = _unit(np.asarray(up, float))
    side = _sideways(upward)
    front = np.cross(upward, side)
    axes = np.stack([-upward, side, -side, front, -front], axis=1)
    surrounded = np.empty(len(candidates), bool)
    for index, candidate in enumerate(candidates):
        offsets = points - candidate
        along = offsets @ axes
        within = (along > 0) & (2 * along**2 > (offsets**2).sum(axis=1, keepdims=True))
        surrounded[index] = within.mean(axis=0).min() >= share
    return surrounded


def _directions(azimuths: np.ndarray, elevations: np.ndarray, up: Vector) -> np.ndarray:
    """(C, 3) unit vectors; elevation is the angle towards `up`, in radians."""
    upward = _unit(np.asarray(up, float))
    first = _sideways(upward)
    second = np.cross(upward, first)
    flat = np.cos(azimuths)[:, None] * first + np.sin(azimuths)[:, None] * second
    return np.cos(elevations)[:, None] * flat + np.sin(elevations)[:, None] * upward


def _sideways(upward: np.ndarray) -> np.ndarray:
    """(3,) a unit vector at right angles to the unit vector `upward`."""
    helper = np.eye(3)[np.argmin(np.abs(upward))]
    return _unit(helper - upward * (helper @ upward))


def _fibonacci_sphere(count: int) -> np.ndarray:
    """(count, 3) evenly spread unit vectors."""
    index = np.arange(count)
    z = 1 - (2 * index + 1) / count
    azimuths = 2 * np.pi * index * _GOLDEN
    flat = np.sqrt(1 - z**2)
    return np.stack([flat * np.cos(azimuths), flat * np.sin(azimuths), z], axis=1)


def _intrinsics(fields_of_view_degrees: np.ndarray, width: int, height: int) -> Float[Tensor, "C 3 3"]:
    """(C, 3, 3) pinhole matrices; the field of view is that of the shorter side."""
    focal = 0.5 * min(width, height) / np.tan(np.radians(fields_of_view_degrees) / 2)
    Ks = np.zeros((len(focal), 3, 3))
    Ks[:, 0, 0] = Ks[:, 1, 1] = focal
    Ks[:, 0, 2], Ks[:, 1, 2], Ks[:, 2, 2] = width / 2, height / 2, 1
    return torch.from_numpy(Ks.astype(np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
