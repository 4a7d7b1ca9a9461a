"""How a scaffold grows where its Gaussians are pulled, and loses anchors that stay faint (Scaffold-GS, section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.optim import Optimizer

from compress3d.cameras import Cameras
from compress3d.splats.anchors.field import NeuralGaussians
from compress3d.splats.anchors.rows import GrowthSchedule, Sightings, change_rows
from compress3d.splats.anchors.scaffold import ScaffoldField, cells
from secateur.training.seeding import generator_at


class AnchorGrower:
    """Anchor growing and pruning; the constants are those of the released code.

    Growing looks at the mean gradient g of each Gaussian over the views that drew it. On level m = 0 .. levels - 1, a
    voxel of edge voxel_size * coarsest / ratio^m that holds no anchor gets one where a Gaussian in it has
    g >= threshold * 2^m. A Gaussian of level m counts with the probability 1 - 0.5^(m + 1). The new anchor's feature is
    the elementwise maximum over the anchors of these Gaussians, its offsets are 0, and its scaling is the voxel's edge.

    An anchor is pruned when the sum of its Gaussians' opacities, over the views that it was in, is below `min_opacity`
    a view.

    Args:
        field: grows in place.
        schedule: when.
        threshold: least mean gradient, in units of half the image.
        levels: voxel sizes.
        coarsest: edge of the largest voxels in those of `field`.
        ratio: of the voxels of two levels.
        min_opacity: see above.
        success: Gaussians count when they were drawn in more than success / 2 of the steps between two updates, anchors
            when they were in view in more than `success`.
        seed: of the random choice.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        field: ScaffoldField,
        schedule: GrowthSchedule,
        *,
        threshold: float = 2e-4,
        levels: int = 3,
        coarsest: float = 16.0,
        ratio: float = 4.0,
        min_opacity: float = 0.005,
        success: float = 0.8,
        seed: int = 0,
    ) -> None:
        if threshold <= 0 or levels < 0 or coarsest <= 0 or ratio <= 0 or min_opacity < 0 or not 0 < success <= 1:
            raise ValueError(
                "threshold, coarsest and ratio must be above 0, levels and min_opacity at least 0, success in (0, 1]"
            )
        self.field, self.schedule, self.seed = field, schedule, seed
        self.threshold, self.levels, self.coarsest, self.ratio = threshold, levels, coarsest, ratio
        self.min_opacity, self.success = min_opacity, success
        self.sightings = Sightings(len(field) * field.slots_per_unit)
        self.opacities = torch.zeros(len(field))
        self.views = torch.zeros(len(field))

    def observe(self, camera: Cameras, units: Tensor, gaussians: NeuralGaussians, meta: dict[str, Any]) -> None:
        self.sightings.add(camera, gaussians, meta)
        anchors = gaussians.slots // self.field.slots_per_unit
        self.opacities.index_add_(0, anchors, gaussians.opacities.detach().float())
        self.views[units] += 1

    def update(self, optimizer: Optimizer, step: int) -> None:
        self.grow(optimizer, step)
        self.prune(optimizer)

    @torch.no_grad()
    def grow(self, optimizer: Optimizer, step: int) -> int:
        """Add anchors; returns how many."""
        field, before = self.field, len(self.field)
        pulls = self.sightings.means()
        seen = self.sightings.visits > self.schedule.every * self.success * 0.5
        means, owners = field.means().reshape(-1, 3), torch.arange(before).repeat_interleave(field.slots_per_unit)
        generator = generator_at(self.seed, step)
        for level in range(self.levels):
            lucky = torch.rand(len(pulls), generator=generator) > 0.5 ** (level + 1)
            chosen = seen & lucky & (pulls >= self.threshold * 2**level)
            size = field.settings.voxel_size * self.coarsest / self.ratio**level
            anchors, features = self._sprout(means[chosen], owners[chosen], size)
            self._change(optimizer, torch.arange(len(field)), anchors, features, size)
        self.sightings.forget(_padded(seen, len(self.sightings.visits)))
        return len(field) - before

    @torch.no_grad()
    def prune(self, optimizer: Optimizer) -> int:
        """Remove faint anchors, but the most opaque; returns how many."""
        before = len(self.field)
        known = self.views > self.schedule.every * self.success
        keep = ~(known & (self.opacities < self.min_opacity * self.views))
        keep[self.opacities.argmax()] = True
        self.opacities[known], self.views[known] = 0, 0
        kept = keep.nonzero()[:, 0]
        if len(kept) < before:
            none = self.field.anchors[:0]
            self._change(optimizer, kept, none, self.field.features[:0], self.field.settings.voxel_size)
        return before - len(kept)

    def _sprout(
        self, means: Float[Tensor, "M 3"], owners: Int64[Tensor, " M"], size: float
    ) -> tuple[Float[Tensor, "V 3"], Float[Tensor, "V F"]]:
        """Positions and features of new anchors in voxels of edge `size` that hold some of `means`, but no anchor."""
        taken = torch.unique(cells(self.field.anchors, size), dim=0)
        places, inverse = torch.unique(cells(means, size), dim=0, return_inverse=True)
        features = self.field.features
        largest = features.new_full((len(places), features.shape[1]), -torch.inf)
        largest.scatter_reduce_(0, inverse[:, None].expand(-1, features.shape[1]), features[owners], "amax")
        free = ~_among(places, taken)
        return places[free] * size, largest[free]

    def _change(
        self, optimizer: Optimizer, kept: Int64[Tensor, " K"], anchors: Tensor, features: Tensor, size: float
    ) -> None:
        field, k, added = self.field, self.field.slots_per_unit, len(anchors)
        logarithm = torch.full((added, 6), size).log()
        change_rows(optimizer, field, "scalings", kept, logarithm)
        change_rows(optimizer, field, "features", kept, features.detach())
        change_rows(optimizer, field, "offsets", kept, torch.zeros(added, k, 3))
        field.anchors = torch.cat([field.anchors[kept], anchors])
        self.sightings.change((kept[:, None] * k + torch.arange(k)).reshape(-1), added * k)
        self.opacities = torch.cat([self.opacities[kept], torch.zeros(added)])
        self.views = torch.cat([self.views[kept], torch.zeros(added)])

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "pulls": self.sightings.pulls,
            "visits": self.sightings.visits,
            "opacities": self.opacities,
            "views": self.views,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sightings.pulls, self.sightings.visits = state["pulls"].clone(), state["visits"].clone()
        self.opacities, self.views = state["opacities"].clone(), state["views"].clone()


def _padded(flags: Bool[Tensor, " N"], count: int) -> Bool[Tensor, " M"]:
    return torch.cat([flags, flags.new_zeros(count - len(flags))])


def _among(places: Int64[Tensor, "V 3"], others: Int64[Tensor, "W 3"]) -> Bool[Tensor, " V"]:
    """Which rows of `places` are rows of `others`; in both they are unique."""
    _, inverse, counts = torch.unique(torch.cat([places, others]), dim=0, return_inverse=True, return_counts=True)
    return counts[inverse[: len(places)]] > 1
