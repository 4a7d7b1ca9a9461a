"""How a forest grows at its leaves, branches and roots, and sheds what nothing hangs on (GaussianForest)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.optim import Optimizer

from compress3d.cameras import Cameras
from compress3d.splats.anchors.field import NeuralGaussians
from compress3d.splats.anchors.forest import ForestField, renumbered
from compress3d.splats.anchors.rows import GrowthSchedule, Sightings, change_rows
from secateur.training.seeding import generator_at


class ForestGrower:
    """Growth by the gradient of a leaf, higher up in its tree the steeper it is; pruning from the leaves upwards.

    A leaf whose mean gradient over the views that drew it is at least `threshold` gets a sibling: a new leaf, at a
    point drawn from the Gaussian that the leaf is, of the same opacity. From `step_up` times that on, the new leaf
    hangs on an internal node of its own, a copy of the old one; from `step_up` squared on, that hangs on a root of its
    own.

    Leaves whose opacity is below `min_opacity` go; then internal nodes without leaves, and roots without internal
    nodes.

    Args:
        field: grows in place.
        schedule: when.
        threshold: in units of half the image, as in 3DGS.
        step_up: factor of the threshold from one level to the one above it.
        min_opacity: in [0, 1], as in 3DGS.
        max_leaves: growth takes the leaves with the steepest gradients first, and stops there.
        seed: of the new leaves' positions.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        field: ForestField,
        schedule: GrowthSchedule,
        *,
        threshold: float = 2e-4,
        step_up: float = 2.0,
        min_opacity: float = 0.005,
        max_leaves: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        if threshold <= 0 or step_up < 1 or not 0 <= min_opacity < 1 or max_leaves < 1:
            raise ValueError(
                "threshold must be above 0, step_up and max_leaves at least 1, min_opacity in [0, 1), got "
                f"{threshold}, {step_up}, {max_leaves} and {min_opacity}"
            )
        self.field, self.schedule, self.seed = field, schedule, seed
        self.threshold, self.step_up, self.min_opacity = threshold, step_up, min_opacity
        self.max_leaves = max_leaves
        self.sightings = Sightings(len(field))

    def observe(self, camera: Cameras, units: Tensor, gaussians: NeuralGaussians, meta: dict[str, Any]) -> None:
        self.sightings.add(camera, gaussians, meta)

    def update(self, optimizer: Optimizer, step: int) -> None:
        self.grow(optimizer, step)
        self.prune(optimizer)
        self.sightings = Sightings(len(self.field))

    @torch.no_grad()
    def grow(self, optimizer: Optimizer, step: int) -> int:
        """Add leaves, with branches and roots; returns how many leaves."""
        pulls = self.sightings.means()
        room = max(0, self.max_leaves - len(self.field))
        steepest = torch.argsort(pulls, descending=True, stable=True)[:room]
        leaves = torch.sort(steepest[pulls[steepest] >= self.threshold]).values
        pulls = pulls[leaves]
        positions = self._drawn(leaves, generator_at(self.seed, step))
        self._sprout(
            optimizer,
            leaves,
            positions,
            pulls >= self.threshold * self.step_up,
            pulls >= self.threshold * self.step_up**2,
        )
        self.sightings.change(torch.arange(len(self.sightings.visits)), len(leaves))
        return len(leaves)

    @torch.no_grad()
    def prune(self, optimizer: Optimizer) -> int:
        """Remove faint leaves, but the most opaque, and what is left without children; returns how many leaves."""
        field, before = self.field, len(self.field)
        keep = torch.sigmoid(field.opacities) >= self.min_opacity
        keep[field.opacities.argmax()] = True
        leaves = keep.nonzero()[:, 0]
        if len(leaves) == before:
            return 0
        field.parents, inner = renumbered(field.parents[leaves])
        field.spans = field.spans[inner]
        field.roots, trees = renumbered(field.roots[inner])
        for names, kept in (
            (("means", "opacities"), leaves),
            (("inner_features",), inner),
            (("root_features",), trees),
        ):
            for name in names:
                change_rows(optimizer, field, name, kept, field.get_parameter(name).detach()[:0])
        self.sightings.change(leaves, 0)
        return before - len(leaves)

    def _drawn(self, leaves: Int64[Tensor, " M"], generator: torch.Generator) -> Tensor:
        """(M, 3) a point of each of these Gaussians."""
        scales, quats = self.field.shapes()
        parents = self.field.parents[leaves]
        noise = torch.randn(len(leaves), 3, generator=generator) * scales[parents]
        w, axis = quats[parents, :1], quats[parents, 1:]
        twice = 2 * torch.linalg.cross(axis, noise)
        return self.field.means[leaves] + noise + w * twice + torch.linalg.cross(axis, twice)

    def _sprout(
        self,
        optimizer: Optimizer,
        leaves: Int64[Tensor, " M"],
        positions: Tensor,
        own_branch: Bool[Tensor, " M"],
        own_root: Bool[Tensor, " M"],
    ) -> None:
        field = self.field
        parents = field.parents[leaves]
        branches, roots = parents[own_branch], field.roots[parents[own_branch]]
        trees = field.roots[parents[own_root]]
        all_leaves, all_inner = torch.arange(len(field)), torch.arange(len(field.roots))
        all_trees = torch.arange(len(field.root_features))
        change_rows(optimizer, field, "root_features", all_trees, field.root_features.detach()[trees])
        change_rows(optimizer, field, "inner_features", all_inner, field.inner_features.detach()[branches])
        change_rows(optimizer, field, "means", all_leaves, positions)
        change_rows(optimizer, field, "opacities", all_leaves, field.opacities.detach()[leaves])
        roots[own_root[own_branch]] = len(all_trees) + torch.arange(len(trees))
        parents[own_branch] = len(all_inner) + torch.arange(len(branches))
        field.roots = torch.cat([field.roots, roots])
        field.spans = torch.cat([field.spans, field.spans[branches]])
        field.parents = torch.cat([field.parents, parents])

    def state_dict(self) -> dict[str, Tensor]:
        return {"pulls": self.sightings.pulls, "visits": self.sightings.visits}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sightings.pulls, self.sightings.visits = state["pulls"].clone(), state["visits"].clone()
