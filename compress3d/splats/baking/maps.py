"""Gaussians of a surface baked to attribute maps, and looked up there.

FATE bakes the Gaussians of a head to maps in its mesh's UV, so that they can be edited as a texture; UVGS maps any
scene to those of a sphere. Here, what does not fit a texel has layers, and the rest is merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from compress3d.splats.baking.surfaces import Sphere, Surface
from compress3d.splats.formats.sanitize import require_valid
from compress3d.splats.importance import OpacityArea
from compress3d.splats.merge import Cloud
from compress3d.splats.scene import GAUSSIANS, SplatScene


@dataclass(frozen=True, slots=True, eq=False)
class BakedScene:
    """Attribute maps of L layers, H x W texels each, of which n in all hold a Gaussian.

    Args:
        surface: what the maps lie on.
        mask: (L, H, W) texels that hold a Gaussian.
        texels: their n Gaussians, in the order of `mask.nonzero()`; `means` are offsets in world units from the
            surface at the texel's centre: along u, across it, and out of the surface. Quaternions have w >= 0.
        merged: Gaussians that baking merged into others for want of layers.
    """

    surface: Surface
    mask: Bool[Tensor, "L H W"]
    texels: SplatScene
    merged: int = 0

    def __post_init__(self) -> None:
        filled = int(self.mask.sum())
        if self.mask.ndim != 3 or filled != len(self.texels):
            raise ValueError(f"a mask (L, H, W) of {len(self.texels)} texels, got {tuple(self.mask.shape)}, {filled}")

    def centers(self) -> Float[Tensor, "n 2"]:
        """Coordinates of the centres of the texels that hold a Gaussian, float64."""
        return _centers(self.mask)

    def map(self, name: str) -> Float[Tensor, "L H W *shape"]:
        """The maps of one of the scene's tensors ("means" are offsets), 0 where no Gaussian is."""
        rows = self.texels.tensors()[name]
        maps = rows.new_zeros(*self.mask.shape, *rows.shape[1:])
        maps[self.mask] = rows
        return maps

    def decode(self) -> SplatScene:
        """The n Gaussians in the world, in the order of `mask.nonzero()`."""
        return _placed(self.texels, self.surface, self.centers())

    def sample(self, uvs: Float[Tensor, "M 2"], layers: Int[Tensor, " M"]) -> tuple[SplatScene, Bool[Tensor, " M"]]:
        """Bilinear look-up of Gaussians.

        Only texels that hold a Gaussian take part, with weights scaled to sum to one. Quaternions of one rotation but
        opposite sign do not cancel. Equal values, and those at the centres of texels, come back bit for bit. Texels are
        neighbours in the map: next to a mesh's seams they need not be on the surface.

        Args:
            uvs: coordinates in [0, 1].
            layers: 0 to L - 1, which one to look in for each.

        Returns:
            The Gaussians of those that lie in a texel that holds one, and (M,) which these are.

        Raises:
            ValueError: a coordinate or layer is out of range.
        """
        if not ((uvs >= 0) & (uvs <= 1)).all() or not ((layers >= 0) & (layers < len(self.mask))).all():
            raise ValueError(f"coordinates must be within [0, 1] and layers 0 to {len(self.mask) - 1}")
        own, corners, weights = self._corners(uvs.double(), layers)
        covered = own >= 0
        own, corners, weights = own[covered], corners[covered], weights[covered]
        weights = weights * (corners >= 0)
        weights = weights / weights.sum(dim=1, keepdim=True)
        corners = torch.where(corners >= 0, corners, own[:, None])
        looked_up = {}
        for name, rows in self.texels.tensors().items():
            at, around = rows[own].double(), rows[corners].double()
            if name == "quats":
                around = torch.where((around * at[:, None]).sum(dim=2, keepdim=True) < 0, -around, around)
            share = weights.reshape(*weights.shape, *[1] * (rows.ndim - 1))
            # Differences from the own texel, so that where they are 0, or weigh nothing, its value stays as it is.
            looked_up[name] = (at + (share * (around - at[:, None])).sum(dim=1)).float()
        return _placed(self.texels.with_tensors(**looked_up), self.surface, uvs.double()[covered]), covered

    def _corners(self, uvs: Tensor, layers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of `texels` at (M,) the own texel and (M, 4) the four around, -1 where empty; (M, 4) their weights."""
        _, height, width = self.mask.shape
        rows = torch.full(self.mask.shape, -1, dtype=torch.int64)
        rows[self.mask] = torch.arange(len(self.texels))
        inside = uvs * torch.tensor([width, height], dtype=torch.float64)
        own = inside.long().minimum(torch.tensor([width - 1, height - 1]))
        low = torch.floor(inside - 0.5)
        high_share = inside - 0.5 - low
        columns = low[:, :1].long() + torch.tensor([0, 1, 0, 1])
        lines = (low[:, 1:].long() + torch.tensor([0, 0, 1, 1])).clamp(0, height - 1)
        columns = columns % width if self.surface.wraps else columns.clamp(0, width - 1)
        across, down = torch.stack([1 - high_share, high_share], dim=2).unbind(dim=1)
        weights = (down[:, :, None] * across[:, None, :]).flatten(1)
        return rows[layers, own[:, 1], own[:, 0]], rows[layers[:, None], lines, columns], weights


def bake(
    scene: SplatScene,
    surface: Surface | None = None,
    resolution: tuple[int, int] = (256, 512),
    layers: int = 4,
    weights: Float[Tensor, " N"] | None = None,
) -> BakedScene:
    """Gaussians baked to maps, as FATE's (arXiv 2411.15604) and UVGS's are (arXiv 2502.01846, section 3.2).

    Each goes to the texel that its middle belongs to. Where more meet than there are layers, neighbours along the ray
    are merged, moments matched, those first whose joint mass is spread least by it (Ward 1963); none is dropped. The
    heaviest of a texel is in layer 0.

    Args:
        scene: N >= 1 Gaussians on the CPU.
        surface: None takes the sphere around the scene's middle.
        resolution: height H and width W of the maps, in texels.
        layers: the most Gaussians of a texel, L.
        weights: (N,) what each Gaussian is worth, not negative, such as its blending weight summed over views. None
            takes opacity times area.

    Raises:
        ValueError: the scene is empty or has Gaussians that cannot be rendered, or an option is out of range.
    """
    height, width = resolution
    if not len(scene) or min(height, width, layers) < 1:
        raise ValueError(f"at least one Gaussian, texel and layer, got {len(scene)}, {resolution} and {layers}")
    require_valid(scene)
    surface = Sphere.around(scene) if surface is None else surface
    weights = OpacityArea().score(scene)[GAUSSIANS] if weights is None else weights
    if weights.shape != (len(scene),) or not (weights >= 0).all():
        raise ValueError(f"weights must be ({len(scene)},) and not negative, got {tuple(weights.shape)}")
    places = (surface.uvs(scene.means) * torch.tensor([width, height])).long()
    places = places.minimum(torch.tensor([width - 1, height - 1])).clamp_min(0)
    cells = (places[:, 1] * width + places[:, 0]).numpy()
    fitting, cells, masses = _fitted(scene, cells, _rays(surface, places, resolution), weights.numpy(), layers)
    order = np.lexsort((-masses, cells))
    ranks = _places(cells[order])
    slots = np.empty(len(order), np.int64)
    slots[order] = ranks * (height * width) + cells[order]
    mask = torch.zeros(layers * height * width, dtype=torch.bool)
    mask[torch.from_numpy(slots)] = True
    mask = mask.reshape(layers, height, width)
    fitting = fitting.select(torch.from_numpy(np.argsort(slots)))
    points, axes = surface.frames(_centers(mask))
    offsets = (axes @ (fitting.means.double() - points)[:, :, None])[:, :, 0].float()
    quats = torch.nn.functional.normalize(fitting.quats)
    quats = torch.where(quats[:, :1] < 0, -quats, quats)
    return BakedScene(surface, mask, fitting.with_tensors(means=offsets, quats=quats), len(scene) - len(fitting))


def _centers(mask: Bool[Tensor, "L H W"]) -> Float[Tensor, "n 2"]:
    return (mask.nonzero()[:, [2, 1]] + 0.5) / torch.tensor([mask.shape[2], mask.shape[1]], dtype=torch.float64)


def _placed(texels: SplatScene, surface: Surface, uvs: Float[Tensor, "n 2"]) -> SplatScene:
    points, axes = surface.frames(uvs)
    return texels.with_tensors(means=(points + (texels.means.double()[:, None] @ axes)[:, 0]).float())


def _rays(surface: Surface, places: Int[Tensor, "N 2"], resolution: tuple[int, int]) -> Float[np.ndarray, "2 N 3"]:
    """Where each one's ray out of the surface starts, and where it points, at the centre of its texel."""
    points, axes = surface.frames((places + 0.5) / torch.tensor(resolution[::-1], dtype=torch.float64))
    return torch.stack([points, axes[:, 2]]).numpy()


def _fitted(
    scene: SplatScene, cells: np.ndarray, rays: Float[np.ndarray, "2 N 3"], weights: np.ndarray, layers: int
) -> tuple[SplatScene, np.ndarray, np.ndarray]:
    """At most `layers` Gaussians a texel; the texel of each, and its mass."""
    cloud = Cloud.of(scene, weights, 0.0, np.zeros(len(scene), np.float32))
    rows = np.arange(len(scene))
    while True:
        starts, outward = rays[:, rows]
        depths = ((cloud.means - starts) * outward).sum(axis=1)
        pairs = _surplus_pairs(cells[rows], depths, cloud, layers)
        if not len(pairs):
            return cloud.scene(scene), cells[rows], cloud.masses
        taken = np.zeros(len(rows), bool)
        taken[pairs] = True
        cloud = cloud.merged(pairs, taken)
        rows = np.concatenate([rows[~taken], rows[pairs[:, 0]]])


def _surplus_pairs(cells: np.ndarray, depths: np.ndarray, cloud: Cloud, layers: int) -> Int[np.ndarray, "pairs 2"]:
    """Pairs to merge, as many in each texel as it has too many, or fewer where a cheaper pair shares a Gaussian."""
    order = np.lexsort((depths, cells))
    first, second = order[:-1], order[1:]
    masses = cloud.masses.astype(np.float64)
    reduced = masses[first] * masses[second] / (masses[first] + masses[second])
    costs = reduced * ((cloud.means[first] - cloud.means[second]) ** 2).sum(axis=1)
    costs[cells[first] != cells[second]] = np.inf
    before, after = np.append(np.inf, costs[:-1]), np.append(costs[1:], np.inf)
    lowest = np.flatnonzero((costs < before) & (costs <= after))
    lowest = lowest[np.lexsort((costs[lowest], cells[first[lowest]]))]
    owners = cells[first[lowest]]
    ordered = cells[order]
    counts = np.searchsorted(ordered, owners, side="right") - np.searchsorted(ordered, owners)
    wanted = lowest[_places(owners) < counts - layers]
    return np.stack([first[wanted], second[wanted]], axis=1)


def _places(ordered: np.ndarray) -> np.ndarray:
    """The place of each entry within its run of equal ones."""
    return np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
