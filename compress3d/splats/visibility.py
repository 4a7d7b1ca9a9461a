"""Which Gaussians does a camera need? Lists for clusters of cameras (RadSplat, arXiv 2403.13806, section 4.3)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.cluster.vq import kmeans2
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import render
from compress3d.splats.rasterize.contributions import ray_contributions
from compress3d.splats.scene import SplatScene
from secateur.tensor_files import TensorFormat

FORMAT = TensorFormat("secateur visibility lists", 1, article="")

_CENTRES, _MASKS = "centres", "masks"


@dataclass(slots=True, eq=False)
class VisibilityLists:
    """A scene, and for each of K clusters of cameras the Gaussians that those cameras need: all others are not drawn.

    Args:
        scene: N Gaussians.
        centres: (K, 6) middle of each cluster, as `view_points` has it.
        unit: world units that count as much as one radian between viewing directions.
        visible: (K, N) True where a cluster needs a Gaussian.
        threshold: the largest blending weight that a Gaussian may have in a cluster's images without being needed.

    Raises:
        ValueError: shapes do not fit.
    """

    scene: SplatScene
    centres: Float[Tensor, "K 6"]
    unit: float
    visible: Bool[Tensor, "K N"]
    threshold: float = 0.0
    _gathered: tuple[int, SplatScene] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        count = len(self.centres)
        if count < 1 or self.centres.shape != (count, 6):
            raise ValueError(f"centres must be (K, 6) with a K of at least 1, got {tuple(self.centres.shape)}")
        if self.visible.shape != (count, len(self.scene)) or self.visible.dtype != torch.bool:
            raise ValueError(
                f"visible must be bool ({count}, {len(self.scene)}),"
                f" got {self.visible.dtype} {tuple(self.visible.shape)}"
            )

    @classmethod
    def of(
        cls,
        scene: SplatScene,
        cameras: Cameras,
        clusters: int = 64,
        *,
        threshold: float = 0.0,
        jitters: int = 0,
        jitter: float = 0.02,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Cluster cameras by position and viewing direction, and see which Gaussians colour their images.

        Time is about twice that of rendering all the views, jittered ones included.

        Args:
            scene: on the CPU.
            cameras: what it was trained or will be looked at through; test-time cameras should have no wider a view.
            clusters: the most there may be; 64 in the paper.
            threshold: a Gaussian is left out whose blending weight exceeds this on no ray of the cluster. With 0 the
                images of `cameras` stay as they are, but for pixels that end in a Gaussian which is left out because
                none sees it (a pixel stops before the Gaussian that takes its last light).
            jitters: cameras beside each one that are looked through, too, so that lists hold a little way off.
            jitter: standard deviation of their shift, in extents of the cameras (as `parameters.extent`).
            seed: of the clusters and of the jitter.
            progress: called with the number of clusters done.

        Raises:
            ValueError: there are no cameras, or a number is out of range.
        """
        if not len(cameras):
            raise ValueError("at least one camera is needed to see what is visible")
        if clusters < 1 or jitters < 0 or threshold < 0 or jitter < 0:
            raise ValueError(
                "clusters must be at least 1, and jitters, jitter and threshold not negative,"
                f" got {clusters}, {jitters}, {jitter} and {threshold}"
            )
        unit = cameras.extent or 1.0
        random = np.random.default_rng(seed)
        centres, labels = _clusters(view_points(cameras, unit), clusters, random)
        visible = torch.zeros(len(centres), len(scene), dtype=torch.bool)
        for index in range(len(centres)):
            nearby = _jittered(cameras[labels == index], jitters, jitter * unit, random)
            visible[index] = ray_contributions(scene, nearby).max > threshold
            if progress is not None:
                progress(index + 1)
        return cls(scene, centres, unit, visible, threshold)

    def __len__(self) -> int:
        return len(self.centres)

    def counts(self) -> Int64[Tensor, " K"]:
        """Gaussians that each cluster needs."""
        return self.visible.sum(dim=1)

    def nearest(self, cameras: Cameras) -> Int64[Tensor, " C"]:
        """The cluster of each camera."""
        return torch.cdist(view_points(cameras, self.unit), self.centres).argmin(dim=1)

    def seen_from(self, cluster: int) -> SplatScene:
        """The Gaussians that a cluster needs, in their order; gathered anew only where the cluster is another one."""
        if self._gathered is None or self._gathered[0] != cluster:
            self._gathered = (cluster, self.scene.select(self.visible[cluster].nonzero()[:, 0]))
        return self._gathered[1]

    def render(
        self, cameras: Cameras, background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ) -> Float[Tensor, "C H W 3"]:
        """As `rasterize.render` of the scene, with the Gaussians of the nearest cluster alone."""
        images = [
            render(self.seen_from(cluster), cameras[index], background)[0]
            for index, cluster in enumerate(self.nearest(cameras).tolist())
        ]
        return torch.stack(images)


def view_points(cameras: Cameras, unit: float) -> Float[Tensor, "C 6"]:
    """What cameras are clustered by: their positions, in multiples of `unit`, and their viewing directions."""
    return torch.cat([cameras.positions / unit, cameras.viewmats[:, 2, :3]], dim=1)


def save_lists(path: str | os.PathLike[str], lists: VisibilityLists) -> int:
    """Write the lists without their scene: one bit for each Gaussian and cluster.

    Returns:
        The bytes of the file.
    """
    fields = {
        "gaussians": len(lists.scene),
        "scene": _digest(lists.scene),
        "unit": lists.unit,
        "threshold": lists.threshold,
    }
    packed = torch.from_numpy(np.packbits(lists.visible.numpy(), axis=1))
    return FORMAT.save(path, {_CENTRES: lists.centres.contiguous(), _MASKS: packed}, fields)


def load_lists(path: str | os.PathLike[str], scene: SplatScene) -> VisibilityLists:
    """The lists that `save_lists` wrote.

    Args:
        path: the file.
        scene: that the lists were made for, in the same order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, damaged, or of another scene; names the file and what is wrong.
    """
    return FORMAT.load(path, partial(_check, scene), partial(_restored, scene))


def _restored(scene: SplatScene, header: dict[str, Any], tensors: dict[str, Tensor]) -> VisibilityLists:
    if set(tensors) != {_CENTRES, _MASKS}:
        raise ValueError(f"tensors must be {_CENTRES} and {_MASKS}, got {sorted(tensors)}")
    centres, packed = tensors[_CENTRES], tensors[_MASKS]
    if centres.dtype != torch.float32 or not bool(torch.isfinite(centres).all()):
        raise ValueError("centres must be finite float32")
    if packed.dtype != torch.uint8 or packed.shape != (len(centres), -(-len(scene) // 8)):
        raise ValueError(f"masks must be a bit for each of {len(scene)} Gaussians, got {tuple(packed.shape)} bytes")
    visible = torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=len(scene)).astype(bool))
    return VisibilityLists(scene, centres, float(header["unit"]), visible, float(header["threshold"]))


def _clusters(points: Float[Tensor, "C 6"], count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Centres (K, 6) and labels (C,) of clusters that all have a camera."""
    count = min(count, len(torch.unique(points, dim=0)))
    centres, _ = kmeans2(points.double().numpy(), count, minit="++", seed=random, missing="warn")
    centres = torch.from_numpy(centres).float()
    used, labels = torch.cdist(points, centres).argmin(dim=1).unique(return_inverse=True)
    return centres[used], labels


def _jittered(cameras: Cameras, jitters: int, deviation: float, random: np.random.Generator) -> Cameras:
    """The cameras, and `jitters` beside each, which look the same way."""
    if not jitters:
        return cameras
    every = torch.arange(len(cameras)).repeat(1 + jitters)
    moved = cameras[every]
    shifts = torch.from_numpy(random.normal(0.0, deviation, (len(every), 3)).astype(np.float32))
    shifts[: len(cameras)] = 0.0
    viewmats = moved.viewmats.clone()
    viewmats[:, :3, 3] -= (viewmats[:, :3, :3] @ shifts[..., None])[..., 0]
    return Cameras(viewmats, moved.Ks, moved.width, moved.height)


def _digest(scene: SplatScene) -> str:
    """Of the positions in their order: another scene, or the same one in another order, has another."""
    return sha256(scene.means.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _check(scene: SplatScene, header: dict[str, Any]) -> None:
    for name, low in (("unit", 1e-30), ("threshold", 0.0)):
        value = header.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < float("inf"):
            raise ValueError(f"field {name!r} must be a number of at least {low}, got {value!r}")
    if header.get("gaussians") != len(scene):
        raise ValueError(f"lists of {header.get('gaussians')!r} Gaussians, the scene has {len(scene)}")
    if header.get("scene") != _digest(scene):
        raise ValueError("lists of another scene, or of this one in another order")
