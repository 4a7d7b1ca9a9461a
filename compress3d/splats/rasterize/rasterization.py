"""One rasterisation function with gsplat's face: CUDA tensors go to gsplat, CPU tensors to the numba kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize.cpu import (
    Gaussians,
    Lens,
    Projection,
    View,
    as_array,
    blend_view,
    project_view,
    view_colors,
)
from compress3d.splats.rasterize.tiles import TILE, TileLists
from compress3d.splats.scene import SplatScene

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RasterizeMode = Literal["classic", "antialiased"]


def rasterization(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    colors: Float[Tensor, "*batch N D"],
    viewmats: Float[Tensor, "C 4 4"],
    Ks: Float[Tensor, "C 3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    backgrounds: Float[Tensor, "C D"] | None = None,
    render_mode: RenderMode = "RGB",
    rasterize_mode: RasterizeMode = "classic",
) -> tuple[Float[Tensor, "C H W X"], Float[Tensor, "C H W 1"], dict[str, Any]]:
    """Rasterise Gaussians into C images; arguments and returns as gsplat 1.5's `rasterization`.

    On the CPU the time is linear in Gaussians plus tile intersections; the memory is one projection (44 bytes a
    Gaussian) plus 4 bytes a tile intersection, for one camera at a time, besides what is returned.

    Args:
        means: (N, 3) centres.
        quats: (N, 4) wxyz, need not be normalised.
        scales: (N, 3) linear standard deviations.
        opacities: (N,) in [0, 1].
        colors: (N, D) or (C, N, D) features; with `sh_degree`, (N, K, 3) or (C, N, K, 3) spherical harmonics.
        viewmats: (C, 4, 4) world to camera, OpenCV axes.
        Ks: (C, 3, 3) intrinsics in pixels, pixel centres at +0.5.
        width, height: image size in pixels.
        near_plane, far_plane: depth range in world units.
        radius_clip: Gaussians of at most this radius in pixels are skipped.
        eps2d: variance in square pixels added to each ellipse.
        sh_degree: degree to evaluate, 0 to 3; None when `colors` are plain features.
        backgrounds: (C, D) composited behind; zeros when None. Not applied to depth.
        render_mode: colours, accumulated depth "D", expected depth "ED", or both, depth as the last channel.
        rasterize_mode: "antialiased" compensates opacity for `eps2d` (mip-splatting).

    Returns:
        images (C, H, W, X), alphas (C, H, W, 1), and a dict with per-camera `means2d` (C, N, 2), `radii` (C, N, 2),
        `depths` (C, N), `conics` (C, N, 3), `opacities` (C, N) after compensation, `tiles_per_gauss` (C, N),
        `isect_offsets` (C, tile rows, tile columns), `flatten_ids`, `tile_size`, `tile_width`, `tile_height`.

    Raises:
        ValueError: shapes, `sh_degree` or modes do not fit.
    """
    _check_modes(render_mode, rasterize_mode)
    count = len(means)
    for name, tensor, shape in (
        ("means", means, (count, 3)),
        ("quats", quats, (count, 4)),
        ("scales", scales, (count, 3)),
        ("opacities", opacities, (count,)),
        ("viewmats", viewmats, (len(viewmats), 4, 4)),
        ("Ks", Ks, (len(viewmats), 3, 3)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    behind = (len(viewmats), colors.shape[-1])
    if backgrounds is not None and render_mode.startswith("RGB") and tuple(backgrounds.shape) != behind:
        raise ValueError(f"backgrounds must have shape {behind}, got {tuple(backgrounds.shape)}")
    if means.is_cuda:
        from compress3d.splats.rasterize.cuda import rasterization_cuda

        return rasterization_cuda(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, far_plane, radius_clip,
            eps2d, sh_degree, backgrounds, render_mode, rasterize_mode,
        )  # fmt: skip
    features = _Features.of(colors, len(viewmats), count, sh_degree)
    gaussians = Gaussians(as_array(means), as_array(quats), as_array(scales), as_array(opacities))
    lens = Lens(near_plane, far_plane, eps2d, radius_clip, rasterize_mode == "antialiased")
    images, alphas, frames = [], [], []
    for index in range(len(viewmats)):
        view = View(as_array(viewmats[index]), as_array(Ks[index]), width, height)
        background = None if backgrounds is None else as_array(backgrounds[index])
        image, alpha, frame = _rasterize_view(gaussians, features, index, view, lens, background, render_mode)
        images.append(torch.from_numpy(image))
        alphas.append(torch.from_numpy(alpha)[..., None])
        frames.append(frame)
    return torch.stack(images), torch.stack(alphas), _meta(frames, count, width, height)


def render(
    scene: SplatScene,
    cameras: Cameras,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    sh_degree: int | None = None,
) -> Float[Tensor, "C H W 3"]:
    """Images of a scene, in the rasteriser mode that the scene was trained for.

    Args:
        scene: on the CPU or on CUDA.
        cameras: C views.
        background: RGB in [0, 1].
        sh_degree: degree to evaluate; the scene's own when None.
    """
    return torch.stack([image for image, _ in render_each(scene, cameras, background, sh_degree)])


def render_each(
    scene: SplatScene,
    cameras: Cameras,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    sh_degree: int | None = None,
) -> Iterator[tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W"]]]:
    """Yield (image (H, W, 3), alpha (H, W)) one camera at a time; arguments as `render`."""
    degree = scene.sh_degree if sh_degree is None else min(sh_degree, scene.sh_degree)
    mode: RasterizeMode = "antialiased" if scene.antialiased else "classic"
    if scene.means.is_cuda:
        for index in range(len(cameras)):
            camera = cameras[index]
            colors = torch.cat([scene.sh0, scene.shN], dim=1)
            image, alpha, _ = rasterization(
                scene.means, scene.quats, torch.exp(scene.scales), scene.peak_opacities(), colors,
                camera.viewmats.to(scene.means), camera.Ks.to(scene.means), camera.width, camera.height,
                sh_degree=degree, backgrounds=scene.means.new_tensor([background]), rasterize_mode=mode,
            )  # fmt: skip
            yield image[0], alpha[0, ..., 0]
        return
    gaussians = scene_gaussians(scene)
    features = _Features(as_array(scene.sh0), as_array(scene.shN), degree)
    lens, behind = Lens(antialiased=scene.antialiased), np.asarray(background, np.float32)
    for view in scene_views(cameras):
        pixels, coverage, _ = _rasterize_view(gaussians, features, 0, view, lens, behind, "RGB")
        yield torch.from_numpy(pixels), torch.from_numpy(coverage)


def scene_gaussians(scene: SplatScene) -> Gaussians:
    """The activated Gaussians of a scene on the CPU."""
    return Gaussians(
        as_array(scene.means),
        as_array(scene.quats),
        as_array(torch.exp(scene.scales)),
        as_array(scene.peak_opacities()),
    )


def scene_views(cameras: Cameras) -> list[View]:
    """Each camera as numpy."""
    return [
        View(as_array(viewmat), as_array(K), cameras.width, cameras.height)
        for viewmat, K in zip(cameras.viewmats, cameras.Ks, strict=True)
    ]


class _Frame(NamedTuple):
    projection: Projection
    tiles: TileLists


class _Features(NamedTuple):
    """Spherical harmonics (sh0 and shN with a degree) or plain (N, D) features, for one camera or for each."""

    first: np.ndarray
    rest: np.ndarray | None = None
    degree: int = 0

    @classmethod
    def of(cls, colors: Tensor, cameras: int, count: int, sh_degree: int | None) -> _Features:
        array = as_array(colors)
        own = 2 if sh_degree is None else 3
        leading = (count,) if array.ndim == own else (cameras, count)
        if array.ndim not in (own, own + 1) or array.shape[: len(leading)] != leading:
            raise ValueError(
                f"colors must be ({'N, D' if own == 2 else 'N, K, 3'}) per camera or for all, got {array.shape}"
            )
        if sh_degree is None:
            return cls(array)
        if not 0 <= sh_degree <= 3 or array.shape[-2] < (sh_degree + 1) ** 2:
            raise ValueError(
                f"sh_degree {sh_degree} needs 0..3 and (sh_degree + 1)^2 coefficients, got {array.shape[-2]}"
            )
        return cls(array[..., :1, :], array[..., 1:, :], sh_degree)

    def toward(self, gaussians: Gaussians, index: int, view: View, order: np.ndarray) -> np.ndarray:
        """(M, D) features of the Gaussians at `order` for camera `index`."""
        own = 2 if self.rest is None else 3
        first = self.first if self.first.ndim == own else self.first[index]
        if self.rest is None:
            return first[order]
        rest = self.rest if self.rest.ndim == own else self.rest[index]
        return view_colors(gaussians, first, rest, self.degree, view, order)


def _rasterize_view(
    gaussians: Gaussians,
    features: _Features,
    index: int,
    view: View,
    lens: Lens,
    background: np.ndarray | None,
    render_mode: RenderMode,
) -> tuple[np.ndarray, np.ndarray, _Frame]:
    projection, tiles = project_view(gaussians, view, lens)
    channels = [] if render_mode in ("D", "ED") else [features.toward(gaussians, index, view, tiles.order)]
    if render_mode != "RGB":
        channels.append(projection.depths[tiles.order, None])
    colors = np.concatenate(channels, axis=1) if len(channels) > 1 else channels[0]
    behind = np.zeros(colors.shape[1], np.float32)
    if background is not None and render_mode not in ("D", "ED"):
        behind[: len(background)] = background
    image, alpha = blend_view(tiles, colors, behind, view)
    if render_mode.endswith("ED"):
        image[..., -1] /= np.maximum(alpha, np.float32(1e-10))
    return image, alpha, _Frame(projection, tiles)


def _meta(frames: list[_Frame], count: int, width: int, height: int) -> dict[str, Any]:
    stacked = {
        name: torch.from_numpy(np.stack([getattr(frame.projection, field) for frame in frames]))
        for name, field in (
            ("means2d", "means2d"), ("radii", "radii"), ("depths", "depths"), ("conics", "conics"),
            ("opacities", "peaks"),
        )
    }  # fmt: skip
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    ids = [frame.tiles.order[frame.tiles.ranks] for frame in frames]
    firsts = np.cumsum([0] + [len(view_ids) for view_ids in ids])
    offsets = [first + frame.tiles.starts[:-1] for first, frame in zip(firsts, frames, strict=False)]
    return stacked | {
        "tiles_per_gauss": torch.from_numpy(np.stack([np.bincount(view_ids, minlength=count) for view_ids in ids])),
        "isect_offsets": torch.from_numpy(np.stack(offsets).reshape(len(frames), tiles_y, tiles_x)),
        "flatten_ids": torch.from_numpy(np.concatenate([view_ids + k * count for k, view_ids in enumerate(ids)])),
        "tile_size": TILE,
        "tile_width": tiles_x,
        "tile_height": tiles_y,
        "width": width,
        "height": height,
        "n_cameras": len(frames),
    }


def _check_modes(render_mode: str, rasterize_mode: str) -> None:
    if render_mode not in ("RGB", "D", "ED", "RGB+D", "RGB+ED"):
        raise ValueError(f"render_mode must be RGB, D, ED, RGB+D or RGB+ED, got {render_mode!r}")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterize_mode must be classic or antialiased, got {rasterize_mode!r}")
