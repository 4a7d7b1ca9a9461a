"""Scaffold-GS: anchors on a voxel grid, each decoded to k Gaussians for the camera that looks (Lu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int64
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn.functional import normalize

from compress3d.splats.anchors.field import REACH, NeuralField, NeuralGaussians, check_shape, load_exactly, network
from secateur.units import Keep

ANCHORS = "anchors"
"""Name of the group of units."""

_VIEW = 4  # direction and distance


@dataclass(frozen=True, slots=True)
class ScaffoldSettings:
    """Sizes of a field; the defaults are the paper's.

    Args:
        voxel_size: edge of the finest voxels, in world units.
        features: numbers in the feature of an anchor.
        offsets: Gaussians of an anchor (k).
        hidden: width of the networks.

    Raises:
        ValueError: one of them is not above 0.
    """

    voxel_size: float
    features: int = 32
    offsets: int = 10
    hidden: int = 32

    def __post_init__(self) -> None:
        if not self.voxel_size > 0 or min(self.features, self.offsets, self.hidden) < 1:
            raise ValueError(f"voxel_size and all sizes must be above 0, got {self}")


class ScaffoldField(NeuralField):
    """Anchors and the networks that decode them (Lu et al., arXiv 2312.00109, section 3).

    An anchor at x has a feature f, k offsets O and a scaling l (stored as logarithms): three numbers that stretch the
    offsets, three that bound the Gaussians' sizes. Seen from a camera in the direction u and at the distance d,

        mean_i    = x + O_i * l[:3]
        opacity_i = tanh(F_opacity(f, u, d))_i        no Gaussian where it is not above 0
        color_i   = sigmoid(F_color(f, u, d))_i
        quat_i    = normalise(F_covariance(f, u, d)_i[3:])
        scale_i   = l[3:] * sigmoid(F_covariance(f, u, d)_i[:3])

    The anchors themselves do not move. The paper blends f with two coarser copies of itself, by weights that depend on
    the view (the feature bank); the released code has that turned off, and here there is none. The distance, which is
    in the paper, is off in the released code and on here.

    Args:
        anchors: (A, 3) positions.
        scalings: (A, 6) logarithms of l.
        settings: sizes.
        seed: of the networks' initial weights. Features and offsets begin at zero.

    Raises:
        ValueError: shapes do not fit.
    """

    method: ClassVar[str] = "scaffold"
    group: ClassVar[str] = ANCHORS

    def __init__(
        self, anchors: Float[Tensor, "A 3"], scalings: Float[Tensor, "A 6"], settings: ScaffoldSettings, seed: int = 0
    ) -> None:
        super().__init__()
        count, k = len(anchors), settings.offsets
        check_shape("anchors", anchors, (count, 3))
        check_shape("scalings", scalings, (count, 6))
        self.settings, self.slots_per_unit = settings, k
        self.anchors: Tensor
        self.register_buffer("anchors", anchors.detach().clone())
        self.scalings = nn.Parameter(scalings.detach().clone())
        self.features = nn.Parameter(torch.zeros(count, settings.features, dtype=anchors.dtype))
        self.offsets = nn.Parameter(torch.zeros(count, k, 3, dtype=anchors.dtype))
        inputs = settings.features + _VIEW
        self.opacity_network = network(inputs, settings.hidden, k, 3 * seed)
        self.color_network = network(inputs, settings.hidden, 3 * k, 3 * seed + 1)
        self.covariance_network = network(inputs, settings.hidden, 7 * k, 3 * seed + 2)

    @classmethod
    def from_points(
        cls,
        points: Float[Tensor, "P 3"],
        *,
        voxel_size: float | None = None,
        features: int = 32,
        offsets: int = 10,
        hidden: int = 32,
        seed: int = 0,
    ) -> Self:
        """A field whose anchors are the voxels that hold a point (section 3.2, anchor point initialisation).

        Each anchor's scaling is its root mean square distance to the three nearest others, in all six numbers.

        Args:
            points: of structure from motion, or any others that fill the scene.
            voxel_size: edge of a voxel; None: the median distance of a point to its nearest neighbour.
            features, offsets, hidden: as in `ScaffoldSettings`.
            seed: of the networks' initial weights.

        Raises:
            ValueError: there are fewer than four points, or they all lie in one place.
        """
        size = median_distance(points) if voxel_size is None else voxel_size
        settings = ScaffoldSettings(size, features, offsets, hidden)
        anchors = voxelize(points, size)
        distances = torch.full((len(anchors),), size)
        if len(anchors) > 3:
            near = cKDTree(anchors.numpy()).query(anchors.numpy(), k=4)[0][:, 1:]
            distances = torch.from_numpy((near**2).mean(axis=1) ** 0.5).float()
        return cls(anchors, distances.log()[:, None].repeat(1, 6), settings, seed)

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        sizes = ScaffoldSettings(**settings)
        for name in ("anchors", "scalings"):
            if name not in state:
                raise ValueError(f"tensor {name!r} is missing")
        field = cls(state["anchors"], state["scalings"], sizes)
        load_exactly(field, state)
        return field

    def settings_record(self) -> dict[str, Any]:
        return asdict(self.settings)

    def __len__(self) -> int:
        return len(self.anchors)

    def unit_rows(self) -> tuple[str, ...]:
        return ("anchors", "scalings", "features", "offsets")

    def means(self) -> Float[Tensor, "A k 3"]:
        """Centres of all Gaussians."""
        return self.anchors[:, None] + self.offsets * self.scalings[:, None, :3].exp()

    def gaussians(self, position: Float[Tensor, 3], units: Int64[Tensor, " U"] | None = None) -> NeuralGaussians:
        units = torch.arange(len(self), device=self.anchors.device) if units is None else units
        count, k = len(units), self.settings.offsets
        anchors, scalings = self.anchors[units], self.scalings[units].exp()
        towards = anchors - position.to(anchors)
        distances = torch.linalg.vector_norm(towards, dim=1, keepdim=True)
        view = torch.cat([self.features[units], towards / distances.clamp_min(1e-12), distances], dim=1)
        shapes = self.covariance_network(view).reshape(count, k, 7)
        means = anchors[:, None] + self.offsets[units] * scalings[:, None, :3]
        scales = scalings[:, None, 3:] * torch.sigmoid(shapes[..., :3])
        slots = units[:, None] * k + torch.arange(k, device=units.device)
        return NeuralGaussians(
            means=means.reshape(-1, 3),
            quats=normalize(shapes[..., 3:], dim=-1).reshape(-1, 4),
            scales=scales.reshape(-1, 3),
            opacities=torch.tanh(self.opacity_network(view)).reshape(-1),
            colors=torch.sigmoid(self.color_network(view)).reshape(-1, 3),
            slots=slots.reshape(-1),
        )

    def bounds(self) -> tuple[Float[Tensor, "A 3"], Float[Tensor, " A"]]:
        scalings = self.scalings.exp()
        spread = torch.linalg.vector_norm(self.offsets * scalings[:, None, :3], dim=-1).amax(dim=1)
        return self.anchors, spread + REACH * scalings[:, 3:].amax(dim=1)

    def regularization(self, gaussians: NeuralGaussians) -> Tensor:
        """0.01 times the mean volume (section 3.4; weight and mean, for the paper's sum, are the released code's)."""
        return 0.01 * gaussians.scales.prod(dim=1).mean() if len(gaussians) else gaussians.scales.new_zeros(())

    def learning_rates(self, extent: float) -> dict[str, tuple[float, float]]:
        """Those of the released code."""
        return {
            "offsets": (0.01 * extent, 1e-4 * extent),
            "features": (0.0075, 0.0075),
            "scalings": (0.007, 0.007),
            "opacity_network": (0.002, 2e-5),
            "covariance_network": (0.004, 0.004),
            "color_network": (0.008, 5e-5),
        }

    def cut(self, keep: Keep) -> Self:
        rows = self.kept_rows(keep)
        state = {
            name: tensor[rows] if name in self.unit_rows() else tensor for name, tensor in self.state_dict().items()
        }
        return type(self).from_state(self.settings_record(), state)


def voxelize(points: Float[Tensor, "P 3"], size: float) -> Float[Tensor, "A 3"]:
    """Centres of the voxels that hold a point, sorted: the unique rounded points / size, times size (section 3.2)."""
    return torch.unique(cells(points, size), dim=0) * size


def cells(points: Float[Tensor, "P 3"], size: float) -> Int64[Tensor, "P 3"]:
    """The voxel of edge `size` that each point is in."""
    return torch.round(points / size).long()


def median_distance(points: Float[Tensor, "P 3"]) -> float:
    """The median distance of a point to its nearest neighbour.

    Raises:
        ValueError: there are fewer than four points, or most lie on top of each other.
    """
    if len(points) < 4:
        raise ValueError(f"a field starts from at least 4 points, got {len(points)}")
    array = points.detach().cpu().numpy()
    distance = float(torch.from_numpy(cKDTree(array).query(array, k=2)[0][:, 1]).median())
    if not distance > 0:
        raise ValueError("most points lie on top of each other: give a voxel size")
    return distance
