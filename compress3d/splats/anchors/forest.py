"""GaussianForest: Gaussians as leaves that share what their branches know (Zhang et al., arXiv 2406.08759)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from compress3d.splats.anchors.field import REACH, NeuralField, NeuralGaussians, check_shape, load_exactly, network
from compress3d.splats.anchors.scaffold import cells, median_distance
from compress3d.splats.initialise import neighbour_distances
from secateur.units import Keep

LEAVES = "leaves"
"""Name of the group of units."""

START_OPACITY = 0.1
"""Of the leaves that a forest starts with, as in 3DGS."""

_DIRECTION = 3
_QUAT_BIAS = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ForestSettings:
    """Sizes of a forest.

    Args:
        inner_features: numbers in the feature of an internal node.
        root_features: numbers in the feature of a root.
        hidden: width of the networks.

    Raises:
        ValueError: one of them is not above 0.
    """

    inner_features: int = 16
    root_features: int = 32
    hidden: int = 32

    def __post_init__(self) -> None:
        if min(self.inner_features, self.root_features, self.hidden) < 1:
            raise ValueError(f"all sizes must be above 0, got {self}")


class ForestField(NeuralField):
    """Trees of three levels and the networks that decode their features.

    Every Gaussian is a leaf, which holds what no other has: its position and its opacity. What it shares is decoded
    from the features on its way to the root: f of the internal node above it, and r of the root above that.

        scale = span * exp(F_shape(f, r)[:3])
        quat  = normalise(F_shape(f, r)[3:])
        color = sigmoid(F_color(f, r, u))        u: the direction in which the camera sees the leaf

    So leaves of one internal node have one shape, and the same color when they are seen in the same direction. The
    span, one number of each internal node that is not learnt, is how far its first leaves lay from their neighbours:
    one length for all would have the networks learn how much wider what is far away must be.

    Args:
        means: (L, 3) positions of the leaves.
        parents: (L,) the internal node above each leaf.
        roots: (I,) the root above each internal node. Every internal node has a leaf, every root an internal node.
        spans: (I,) above 0, in world units.
        settings: sizes.
        seed: of the features and of the networks' initial weights.

    Raises:
        ValueError: shapes do not fit; a span is not above 0; an internal node or a root is missing, or has no child.
    """

    method: ClassVar[str] = "forest"
    group: ClassVar[str] = LEAVES
    slots_per_unit = 1

    def __init__(
        self,
        means: Float[Tensor, "L 3"],
        parents: Int64[Tensor, " L"],
        roots: Int64[Tensor, " I"],
        spans: Float[Tensor, " I"],
        settings: ForestSettings,
        seed: int = 0,
    ) -> None:
        super().__init__()
        inner, trees = len(roots), int(roots.max()) + 1 if roots.numel() else 0
        check_shape("means", means, (len(means), 3))
        check_shape("spans", spans, (inner,))
        if not bool((spans > 0).all()):
            raise ValueError(f"spans must be above 0, got {float(spans.min())}")
        _check_parents("parents", parents, inner)
        _check_parents("roots", roots, trees)
        if len(parents) != len(means):
            raise ValueError(f"parents must be one for each of {len(means)} means, got {len(parents)}")
        self.settings = settings
        self.parents: Tensor
        self.roots: Tensor
        self.spans: Tensor
        self.register_buffer("parents", parents.detach().clone())
        self.register_buffer("roots", roots.detach().clone())
        self.register_buffer("spans", spans.detach().clone())
        self.means = nn.Parameter(means.detach().clone())
        self.opacities = nn.Parameter(torch.full_like(means[:, 0], START_OPACITY).logit())
        generator = torch.Generator().manual_seed(seed)
        # Not zero: siblings would stay alike where nothing tells their branches apart.
        self.inner_features = nn.Parameter(0.01 * torch.randn(inner, settings.inner_features, generator=generator))
        self.root_features = nn.Parameter(0.01 * torch.randn(trees, settings.root_features, generator=generator))
        inputs = settings.inner_features + settings.root_features
        self.shape_network = network(inputs, settings.hidden, 7, 2 * seed)
        self.color_network = network(inputs + _DIRECTION, settings.hidden, 3, 2 * seed + 1)

    @classmethod
    def from_points(
        cls,
        points: Float[Tensor, "P 3"],
        *,
        voxel_size: float | None = None,
        branching: float = 2.0,
        inner_features: int = 16,
        root_features: int = 32,
        hidden: int = 32,
        seed: int = 0,
    ) -> Self:
        """A forest with a leaf at each point; internal nodes and roots are the voxels that they are in.

        Args:
            points: of structure from motion, or any others that fill the scene.
            voxel_size: edge of the voxels of internal nodes; None: twice the median distance of a point to its nearest
                neighbour.
            branching: edge of the voxels of roots, in those of internal nodes.
            inner_features, root_features, hidden: as in `ForestSettings`.
            seed: of the features and of the networks' initial weights.

        Raises:
            ValueError: there are fewer than four points, or they all lie in one place; `branching` is below 1.
        """
        if branching < 1:
            raise ValueError(f"branching must be at least 1, got {branching}")
        size = 2 * median_distance(points) if voxel_size is None else voxel_size
        places, parents = torch.unique(cells(points, size), dim=0, return_inverse=True)
        _, roots = torch.unique(cells(places * size, branching * size), dim=0, return_inverse=True)
        spans = points.new_zeros(len(places))
        spans = spans.scatter_reduce(0, parents, neighbour_distances(points), "mean", include_self=False)
        return cls(points, parents, roots, spans, ForestSettings(inner_features, root_features, hidden), seed)

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        sizes = ForestSettings(**settings)
        for name in ("means", "parents", "roots", "spans"):
            if name not in state:
                raise ValueError(f"tensor {name!r} is missing")
        field = cls(state["means"], state["parents"], state["roots"], state["spans"], sizes)
        load_exactly(field, state)
        return field

    def settings_record(self) -> dict[str, Any]:
        return asdict(self.settings)

    def __len__(self) -> int:
        return len(self.means)

    def unit_rows(self) -> tuple[str, ...]:
        return ("means", "opacities", "parents")

    def shapes(self) -> tuple[Float[Tensor, "I 3"], Float[Tensor, "I 4"]]:
        """Linear scales and unit quaternions of the leaves of each internal node."""
        decoded = self.shape_network(self._features())
        quats = normalize(decoded[:, 3:] + decoded.new_tensor(_QUAT_BIAS), dim=-1)
        return self.spans[:, None] * decoded[:, :3].exp(), quats

    def gaussians(self, position: Float[Tensor, 3], units: Int64[Tensor, " U"] | None = None) -> NeuralGaussians:
        units = torch.arange(len(self), device=self.means.device) if units is None else units
        parents, means = self.parents[units], self.means[units]
        scales, quats = self.shapes()
        directions = normalize(means - position.to(means), dim=-1)
        view = torch.cat([self._features()[parents], directions], dim=1)
        return NeuralGaussians(
            means=means,
            quats=quats[parents],
            scales=scales[parents],
            opacities=torch.sigmoid(self.opacities[units]),
            colors=torch.sigmoid(self.color_network(view)),
            slots=units,
        )

    def bounds(self) -> tuple[Float[Tensor, "L 3"], Float[Tensor, " L"]]:
        return self.means, REACH * self.shapes()[0].amax(dim=1)[self.parents]

    def learning_rates(self, extent: float) -> dict[str, tuple[float, float]]:
        """Those of 3DGS for what leaves hold, and of Scaffold-GS for features and networks."""
        return {
            "means": (1.6e-4 * extent, 1.6e-6 * extent),
            "opacities": (0.05, 0.05),
            "inner_features": (0.0075, 0.0075),
            "root_features": (0.0075, 0.0075),
            "shape_network": (0.004, 0.004),
            "color_network": (0.008, 5e-5),
        }

    def cut(self, keep: Keep) -> Self:
        """The forest of the kept leaves, without internal nodes that lose all of theirs, and roots left without any."""
        leaves = self.kept_rows(keep)
        parents, inner = renumbered(self.parents[leaves])
        roots, trees = renumbered(self.roots[inner])
        changed = {
            "means": self.means[leaves],
            "opacities": self.opacities[leaves],
            "parents": parents,
            "inner_features": self.inner_features[inner],
            "roots": roots,
            "spans": self.spans[inner],
            "root_features": self.root_features[trees],
        }
        return type(self).from_state(self.settings_record(), {**self.state_dict(), **changed})

    def _features(self) -> Float[Tensor, "I F"]:
        """The features on the way from each internal node to its root."""
        return torch.cat([self.inner_features, self.root_features[self.roots]], dim=1)


def renumbered(parents: Int64[Tensor, " N"]) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " K"]]:
    """Parents counted anew without those that have no child, in the same order; and which those are that have one."""
    alive, numbers = torch.unique(parents, return_inverse=True)
    return numbers, alive


def _check_parents(name: str, parents: Tensor, count: int) -> None:
    if parents.ndim != 1 or parents.dtype != torch.int64:
        raise ValueError(f"{name} must be (N,) int64, got {parents.dtype} {tuple(parents.shape)}")
    if len(parents) < count or not torch.equal(torch.unique(parents), torch.arange(count, device=parents.device)):
        raise ValueError(f"{name} must name each of the {count} nodes above, and no other")
