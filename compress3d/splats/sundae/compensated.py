"""A scene, a few feature channels for each of its Gaussians, and the head that mends the render with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.compensation import CompensationHead, Splatted
from compress3d.splats.pictures import WHITE
from compress3d.splats.rasterize import rasterization, render_each
from compress3d.splats.rasterize.autograd import Harmonics
from compress3d.splats.rasterize.rasterization import RasterizeMode, scene_views
from compress3d.splats.scene import SplatScene
from secateur.units import Keep, Member, UnitGroup, check_keep

FEATURES = "features"
"""Name of the features among the tensors of a compensated scene."""


class BothImages(NamedTuple):
    """One view of a compensated scene: mended by the head, and as an ordinary viewer shows it. Both (H, W, 3)."""

    with_head: Float[Tensor, "H W 3"]
    without_head: Float[Tensor, "H W 3"]


@dataclass(frozen=True, slots=True, eq=False)
class CompensatedScene:
    """What SUNDAE makes of a scene. Its units are the Gaussians, which own their features.

    Args:
        scene: N Gaussians.
        features: (N, C) float32; C is what the head wants, 0 where it looks at the render alone.
        head: mends the render.

    Raises:
        ValueError: the features do not fit the scene or the head.
    """

    scene: SplatScene
    features: Float[Tensor, "N C"]
    head: CompensationHead

    def __post_init__(self) -> None:
        shape = (len(self.scene), self.head.features)
        if tuple(self.features.shape) != shape or self.features.dtype != torch.float32:
            raise ValueError(
                f"features must be float32 {shape}, got {self.features.dtype} {tuple(self.features.shape)}"
            )

    @classmethod
    def start(cls, scene: SplatScene, head: CompensationHead) -> Self:
        """Features of zero: with an untrained head, nothing is mended yet."""
        return cls(scene, scene.means.new_zeros(len(scene), head.features), head)

    def __len__(self) -> int:
        return len(self.scene)

    def render(self, cameras: Cameras, background: tuple[float, float, float] = WHITE) -> Float[Tensor, "C H W 3"]:
        """Compensated images; differentiable in all tensors and in the head."""
        return torch.stack([images.with_head for images in self.render_both(cameras, background)])

    def render_both(self, cameras: Cameras, background: tuple[float, float, float] = WHITE) -> Iterator[BothImages]:
        """Yield each view with and without the head: the latter is bit for bit what `render` makes of the scene."""
        for index in range(len(cameras)):
            splatted = splat(self.scene, self.features, cameras[index], background)
            yield BothImages(self.head(splatted), splatted.image)

    def tensors(self) -> Mapping[str, Tensor]:
        return {**self.scene.tensors(), FEATURES: self.features}

    def groups(self) -> Sequence[UnitGroup]:
        """The scene's one group; the head's weights are nobody's, and stay."""
        (group,) = self.scene.groups()
        if not self.head.features:
            return (group,)
        cost = {**group.cost, "bytes": group.cost["bytes"] + 4.0 * self.head.features}
        return (replace(group, members=(*group.members, Member(FEATURES)), cost=cost),)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """As `SplatScene.masked`: a Gaussian that is not seen shows no features, either."""
        with self.scene.masked(masks):
            yield

    def cut(self, keep: Keep) -> Self:
        check_keep(keep, self.groups())
        (group,) = self.groups()
        return replace(
            self, scene=self.scene.cut(keep), features=self.features[keep[group.name]], head=deepcopy(self.head)
        )


def splat(
    scene: SplatScene,
    features: Float[Tensor, "N C"],
    camera: Cameras,
    background: tuple[float, float, float] = WHITE,
) -> Splatted:
    """Render one view, and the features with the weights of its colours; differentiable.

    On the CPU both come of one walk over the pixels.

    Args:
        scene: N Gaussians.
        features: C channels of each; there may be none.
        camera: one camera.
        background: RGB behind the colours.
    """
    behind = features.new_tensor(background)
    mode: RasterizeMode = "antialiased" if scene.antialiased else "classic"
    gaussians = (scene.means, scene.quats, torch.exp(scene.scales), scene.peak_opacities())
    view = (camera.viewmats.to(features), camera.Ks.to(features), camera.width, camera.height)
    if features.is_cuda or not features.shape[1]:
        image, alpha = next(render_each(scene, camera, background))
        channels = image.new_zeros(*image.shape[:2], 0)
        if features.shape[1]:
            channels = rasterization(*gaussians, features, *view, rasterize_mode=mode)[0][0]
        return Splatted(image, alpha[..., None], channels, behind)
    colors = torch.cat([_colors(scene, camera), features], dim=1)
    backgrounds = torch.cat([behind, behind.new_zeros(features.shape[1])])[None]
    images, alphas, _ = rasterization(*gaussians, colors, *view, backgrounds=backgrounds, rasterize_mode=mode)
    return Splatted(images[0, ..., :3], alphas[0], images[0, ..., 3:], behind)


def _colors(scene: SplatScene, camera: Cameras) -> Float[Tensor, "N 3"]:
    """What each Gaussian shows to a camera."""
    (view,) = scene_views(camera)
    every = torch.arange(len(scene), dtype=torch.int32).numpy()
    return Harmonics.apply(scene.means, scene.sh0, scene.shN, camera.viewmats[0], scene.sh_degree, view, every)
