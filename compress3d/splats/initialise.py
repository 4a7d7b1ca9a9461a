"""Where training starts: a scene of small faint balls, on the points of a capture or where its cameras look."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.captures import Capture
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene

SH_C0 = 0.28209479177387814
"""Value of the constant spherical harmonic: colour = 0.5 + SH_C0 * sh0."""

_OPACITY = 0.1
_NEIGHBOURS = 3
_CANDIDATES = 8
_MOST_CAMERAS = 100
_FEWEST_SEEING = 3
_SHARE_INSIDE = 0.95
_NEAREST, _FARTHEST_OPAQUE, _FARTHEST = 0.5, 10.0, 1.5


def initial_scene(
    capture: Capture, count: int, *, sh_degree: int = 3, antialiased: bool = False, seed: int = 0
) -> SplatScene:
    """Balls of opacity 0.1, as wide as the distance to their three nearest neighbours (root mean square).

    They lie on the capture's points (drawn at random where there are more than `count`), else where `seen_points` finds
    them (Kerbl et al. 2023, section 5.1; gsplat's simple_trainer).

    Args:
        capture: only its training photographs are looked at.
        count: the most Gaussians.
        sh_degree: 0 to 3; coefficients above degree 0 start at 0.
        antialiased: which rasteriser the scene is for.
        seed: of what is drawn at random.

    Raises:
        ValueError: `count` is below 1 or `sh_degree` none, or the capture has no photograph to train on.
    """
    if count < 1:
        raise ValueError(f"a scene starts from at least 1 Gaussian, got {count}")
    if sh_degree not in SH_COEFFICIENTS:
        raise ValueError(f"sh_degree must be 0 to 3, got {sh_degree}")
    generator = torch.Generator().manual_seed(seed)
    if capture.points is not None and len(capture.points):
        chosen = torch.randperm(len(capture.points), generator=generator)[:count].sort().values
        means, colours = capture.points.xyz[chosen].float(), capture.points.rgb[chosen].float() / 255
    else:
        means, colours = seen_points(capture, count, generator)
    n = len(means)
    return SplatScene(
        means=means.contiguous(),
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        scales=torch.log(neighbour_distances(means))[:, None].repeat(1, 3),
        opacities=torch.full((n,), math.log(_OPACITY / (1 - _OPACITY))),
        sh0=((colours - 0.5) / SH_C0)[:, None],
        shN=torch.zeros(n, SH_COEFFICIENTS[sh_degree], 3),
        antialiased=antialiased,
    )


def neighbour_distances(means: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
    """Root mean square distance to the three nearest others (fewer where there are fewer), in world units, above 0."""
    n = len(means)
    near = min(_NEIGHBOURS, n - 1)
    if near < 1:
        return torch.full((n,), 1e-2)
    points = means.numpy().astype(np.float64)
    distances = cKDTree(points).query(points, k=near + 1)[0][:, 1:]
    return torch.from_numpy(np.sqrt(np.square(distances).mean(axis=1))).float().clamp_min(1e-7)


def seen_points(
    capture: Capture, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "P 3"], Float[Tensor, "P 3"]]:
    """Random points in what the training cameras see, with the mean of the colours that the photographs show there.

    Points lie on rays through random pixels: uniformly in depth around the point that the cameras look at where the
    photographs have alpha, else uniformly in the inverse of depth, so that there are some for the background. Preferred
    are points that several cameras see and, with alpha, that are inside the visual hull: no camera sees through them.

    Args:
        capture: see there; its masks are not heeded.
        count: of points.
        generator: of the random numbers.

    Returns:
        positions (P, 3) in the world and colours (P, 3) in [0, 1].

    Raises:
        ValueError: the capture has no photograph to train on.
    """
    if not len(capture.train):
        raise ValueError(f"{capture.name}: no photographs to train on")
    order = torch.randperm(len(capture.train), generator=generator)[:_MOST_CAMERAS]
    views = capture.subset(capture.train[order])
    points = _points_on_rays(views, _CANDIDATES * count, generator)
    seeing, inside = torch.zeros(len(points)), torch.zeros(len(points))
    colours = torch.zeros(len(points), 3)
    for index in range(len(views)):
        seen, pixels = _project(points, views.cameras, index)
        seeing[seen] += 1
        alpha = _alpha(views, index).flatten()[pixels]
        inside[seen] += (alpha > 0.5).float()
        colours[seen] += views.images[index].flatten(0, 1)[pixels].float() / 255 * alpha[:, None]
        # What a transparent pixel shows says nothing about the point.
        colours[seen] += 0.5 * (1 - alpha[:, None])
    share = inside / seeing.clamp_min(1)
    good = (seeing >= min(_FEWEST_SEEING, len(views))) & (share >= _SHARE_INSIDE)
    best = torch.where(good, 1.0, share - 1).argsort(descending=True, stable=True)[:count]
    return points[best], colours[best] / seeing[best].clamp_min(1)[:, None]


def _points_on_rays(views: Capture, count: int, generator: torch.Generator) -> Float[Tensor, "P 3"]:
    cameras = views.cameras
    depth = _depth_of_interest(cameras)
    of = torch.randint(len(views), (count,), generator=generator).sort().values
    random = torch.rand(count, generator=generator)
    if views.alphas is None:
        depths = depth / (1 / _NEAREST + random * (1 / _FARTHEST_OPAQUE - 1 / _NEAREST))
    else:
        depths = depth * (_NEAREST + random * (_FARTHEST - _NEAREST))
    points = torch.empty(count, 3)
    for index in range(len(views)):
        mine = of == index
        opaque = (_alpha(views, index).flatten() > 0.5).nonzero()[:, 0]
        if not len(opaque):
            opaque = torch.arange(cameras.width * cameras.height)
        pixels = opaque[torch.randint(len(opaque), (int(mine.sum()),), generator=generator)]
        x, y = pixels % cameras.width, pixels // cameras.width
        homogeneous = torch.stack([x + 0.5, y + 0.5, torch.ones(len(pixels))], dim=1)
        local = homogeneous @ torch.linalg.inv(cameras.Ks[index]).T * depths[mine, None]
        viewmat = cameras.viewmats[index]
        points[mine] = (local - viewmat[:3, 3]) @ viewmat[:3, :3]
    return points


def _depth_of_interest(cameras: Cameras) -> float:
    """The median depth of the point nearest to all optical axes; where they do not meet, the cameras' spread."""
    axes, centres = cameras.viewmats[:, 2, :3].double(), cameras.positions.double()
    middle = centres.mean(dim=0)
    spread = float((centres - middle).norm(dim=1).max())
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    toward = (across @ (centres - middle)[:, :, None]).sum(dim=0)[:, 0]
    # A little weight on the middle keeps parallel axes from meeting at infinity.
    regular = across.sum(dim=0) + 1e-6 * len(cameras) * torch.eye(3, dtype=torch.float64)
    focus = middle + torch.linalg.solve(regular, toward)
    depth = float(((focus - centres) * axes).sum(dim=1).median())
    return depth if depth > 0.1 * spread and depth > 0 else max(spread, 1.0)


def _project(points: Tensor, cameras: Cameras, index: int) -> tuple[Tensor, Tensor]:
    """Indices of the points that a camera sees, and the flat index of the pixel that each of them is in."""
    viewmat, K = cameras.viewmats[index], cameras.Ks[index]
    local = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    depth = local[:, 2].clamp_min(1e-6)
    x = (K[0, 0] * local[:, 0] + K[0, 1] * local[:, 1]) / depth + K[0, 2]
    y = K[1, 1] * local[:, 1] / depth + K[1, 2]
    inside = (local[:, 2] > 1e-3) & (x >= 0) & (x < cameras.width) & (y >= 0) & (y < cameras.height)
    seen = inside.nonzero()[:, 0]
    return seen, y[seen].long() * cameras.width + x[seen].long()


def _alpha(views: Capture, index: int) -> Float[Tensor, "H W"]:
    if views.alphas is None:
        return torch.ones(views.images.shape[1:3])
    return views.alphas[index].float() / 255
