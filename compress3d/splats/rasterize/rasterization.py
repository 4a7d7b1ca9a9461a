"""One rasterisation function with gsplat's face: CUDA tensors go to gsplat, CPU tensors to the numba kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize.autograd import Blend, Harmonics, Project
from compress3d.splats.rasterize.cpu import Gaussians, Lens, View, as_array
from compress3d.splats.rasterize.tiles import TILE, TileLists, list_tiles
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
    absgrad: bool = False,
) -> tuple[Float[Tensor, "C H W X"], Float[Tensor, "C H W 1"], dict[str, Any]]:
    """Rasterise Gaussians into C images; arguments and returns as gsplat 1.5's `rasterization`.

    Differentiable in everything but `Ks`. On the CPU the time is linear in Gaussians plus tile intersections, and so is
    the memory: 44 bytes a Gaussian plus 4 bytes a tile intersection for each camera, besides what is returned; the
    backward pass adds 44 bytes a tile intersection (for three channels), for one camera at a time.

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
        absgrad: the backward pass fills `means2d.absgrad` of the meta with the sum over pixels of |d loss / d means2d|
            (Ye et al. 2024, AbsGS).

    Returns:
        images (C, H, W, X), alphas (C, H, W, 1), and the dict that gsplat gives when it packs nothing: per camera
        `means2d` (C, N, 2), `radii` (C, N, 2), `depths` (C, N), `conics` (C, N, 3), `opacities` (C, N) after
        compensation, `tiles_per_gauss` (C, N); `isect_offsets` (C, tile rows, tile columns), `flatten_ids`,
        `tile_size`, `tile_width`, `tile_height`; `gaussian_ids` is None.

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
            eps2d, sh_degree, backgrounds, render_mode, rasterize_mode, absgrad,
        )  # fmt: skip
    features = _Features.of(colors, len(viewmats), count, sh_degree)
    lens = Lens(near_plane, far_plane, eps2d, radius_clip, rasterize_mode == "antialiased")
    views = scene_views(Cameras(viewmats.detach(), Ks.detach(), width, height))
    projections = [
        Project.apply(means, quats, scales, opacities, viewmat, view, lens)
        for viewmat, view in zip(viewmats, views, strict=True)
    ]
    tiles = [_list(projection, view) for projection, view in zip(projections, views, strict=True)]
    # Stacked before they are blended, so that the gradients that reach `means2d` can be read off the meta.
    stacked = _Projection(*(torch.stack(parts) for parts in zip(*projections, strict=True)))
    if absgrad:
        stacked.means2d.absgrad = torch.zeros_like(stacked.means2d)  # type: ignore[attr-defined]
    images, alphas = [], []
    for index, view in enumerate(views):
        channels = features.toward(means, viewmats[index], index, view, tiles[index].order)
        background = None if backgrounds is None else backgrounds[index]
        image, alpha = _composite(stacked.of(index), channels, background, tiles[index], view, render_mode)
        images.append(image)
        alphas.append(alpha[..., None])
    return torch.stack(images), torch.stack(alphas), _meta(stacked, tiles, width, height)


def render(
    scene: SplatScene,
    cameras: Cameras,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    sh_degree: int | None = None,
) -> Float[Tensor, "C H W 3"]:
    """Images of a scene, in the rasteriser mode that the scene was trained for; differentiable in its tensors.

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
    features = _Features(scene.sh0, scene.shN, degree)
    lens, behind = Lens(antialiased=scene.antialiased), torch.tensor(background, dtype=torch.float32)
    scales, opacities = torch.exp(scene.scales), scene.peak_opacities()
    for viewmat, view in zip(cameras.viewmats, scene_views(cameras), strict=True):
        projection = _Projection(*Project.apply(scene.means, scene.quats, scales, opacities, viewmat, view, lens))
        tiles = _list(projection, view)
        channels = features.toward(scene.means, viewmat, 0, view, tiles.order)
        yield _composite(projection, channels, behind, tiles, view, "RGB")


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


class _Projection(NamedTuple):
    """What one camera sees of each Gaussian, as differentiable tensors; or what each of C sees, stacked."""

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    peaks: Tensor
    radii: Tensor

    def of(self, index: int) -> _Projection:
        """Camera `index` of the stack; what gathers the absolute gradients goes with it."""
        one = _Projection(*(stack[index] for stack in self))
        if hasattr(self.means2d, "absgrad"):
            one.means2d.absgrad = self.means2d.absgrad[index]  # type: ignore[attr-defined]
        return one


class _Features(NamedTuple):
    """Spherical harmonics (sh0 and shN with a degree) or plain (N, D) features, for one camera or for each."""

    first: Tensor
    rest: Tensor | None = None
    degree: int = 0

    @classmethod
    def of(cls, colors: Tensor, cameras: int, count: int, sh_degree: int | None) -> _Features:
        own = 2 if sh_degree is None else 3
        leading = (count,) if colors.ndim == own else (cameras, count)
        if colors.ndim not in (own, own + 1) or colors.shape[: len(leading)] != leading:
            raise ValueError(
                f"colors must be ({'N, D' if own == 2 else 'N, K, 3'}) per camera or for all, got {tuple(colors.shape)}"
            )
        if sh_degree is None:
            return cls(colors)
        if not 0 <= sh_degree <= 3 or colors.shape[-2] < (sh_degree + 1) ** 2:
            raise ValueError(
                f"sh_degree {sh_degree} needs 0..3 and (sh_degree + 1)^2 coefficients, got {colors.shape[-2]}"
            )
        return cls(colors[..., :1, :], colors[..., 1:, :], sh_degree)

    def toward(self, means: Tensor, viewmat: Tensor, index: int, view: View, order: np.ndarray) -> Tensor:
        """(M, D) features of the Gaussians at `order` for camera `index`."""
        own = 2 if self.rest is None else 3
        first = self.first if self.first.ndim == own else self.first[index]
        if self.rest is None:
            return first[torch.from_numpy(order).long()]
        rest = self.rest if self.rest.ndim == own else self.rest[index]
        return Harmonics.apply(means, first, rest, viewmat, self.degree, view, order)


def _list(projection: tuple[Tensor, ...], view: View) -> TileLists:
    arguments: tuple[Any, ...] = (*(part.detach().numpy() for part in projection), view.width, view.height)
    return list_tiles(*arguments)


def _composite(
    projection: _Projection,
    features: Tensor,
    background: Tensor | None,
    tiles: TileLists,
    view: View,
    render_mode: RenderMode,
) -> tuple[Tensor, Tensor]:
    """Image (H, W, X) and alpha (H, W) of one camera."""
    channels = [] if render_mode in ("D", "ED") else [features]
    if render_mode != "RGB":
        channels.append(projection.depths[torch.from_numpy(tiles.order).long(), None])
    colors = torch.cat(channels, dim=1) if len(channels) > 1 else channels[0]
    behind = colors.new_zeros(colors.shape[1])
    if background is not None and render_mode not in ("D", "ED"):
        behind = torch.cat([background, behind[len(background) :]])
    absgrad = getattr(projection.means2d, "absgrad", None)
    image, alpha = Blend.apply(*projection[:2], projection.peaks, colors, behind, tiles, view, absgrad)
    if render_mode.endswith("ED"):
        image = torch.cat([image[..., :-1], image[..., -1:] / alpha[..., None].clamp_min(1e-10)], dim=-1)
    return image, alpha


def _meta(stacked: _Projection, tiles: list[TileLists], width: int, height: int) -> dict[str, Any]:
    count = stacked.depths.shape[1]
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    ids = [lists.order[lists.ranks] for lists in tiles]
    firsts = np.cumsum([0] + [len(view_ids) for view_ids in ids])
    offsets = [first + lists.starts[:-1] for first, lists in zip(firsts, tiles, strict=False)]
    return {
        "gaussian_ids": None,
        "means2d": stacked.means2d,
        "radii": stacked.radii,
        "depths": stacked.depths,
        "conics": stacked.conics,
        "opacities": stacked.peaks,
        "tiles_per_gauss": torch.from_numpy(np.stack([np.bincount(view_ids, minlength=count) for view_ids in ids])),
        "isect_offsets": torch.from_numpy(np.stack(offsets).reshape(len(tiles), tiles_y, tiles_x)),
        "flatten_ids": torch.from_numpy(np.concatenate([view_ids + k * count for k, view_ids in enumerate(ids)])),
        "tile_size": TILE,
        "tile_width": tiles_x,
        "tile_height": tiles_y,
        "width": width,
        "height": height,
        "n_cameras": len(tiles),
    }


def _check_modes(render_mode: str, rasterize_mode: str) -> None:
    if render_mode not in ("RGB", "D", "ED", "RGB+D", "RGB+ED"):
        raise ValueError(f"render_mode must be RGB, D, ED, RGB+D or RGB+ED, got {render_mode!r}")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterize_mode must be classic or antialiased, got {rasterize_mode!r}")
