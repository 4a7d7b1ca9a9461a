"""A neural radiance field: a hash grid, two small networks that read it, and the cells where it is not empty.

Instant NGP (Müller et al., arXiv 2201.05989, section 5.4): the features of a position become 16 numbers, of which the
first is the logarithm of the density; with them and 16 spherical harmonics of the direction another network gives the
colour. Networks have no biases, rectified hidden layers, and a sigmoid before the colour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn

from compress3d.nerf.hashgrid import Levels, encode, encode_reference
from compress3d.nerf.levels import MOST_FEATURES, first_rows, grid_levels
from compress3d.nerf.march import Stride
from compress3d.nerf.networks import log_densities, shade, shade_reference
from compress3d.nerf.occupancy import Occupancy
from compress3d.nerf.rays import Box
from compress3d.nerf.units import cut_field, field_groups, scales_of
from secateur.surgery.masking import Masked, masked_tensors
from secateur.units import Keep, UnitGroup

GEOMETRY = 16
"""Numbers that the density network gives, the logarithm of the density first."""

HARMONICS = 16
_LARGEST_LOG_DENSITY = 15.0
_START = 1e-4


class Field(nn.Module):
    """Density and colour at points of a cube, as a `Prunable`.

    Its groups are the rows of the tables ("rows"), the levels ("levels": what reads them, and their rows with it), the
    hidden neurons ("density.0", "color.0", ...) and the numbers that go from one network to the other ("geometry").
    A row that is cut reads as zeros, and costs a bit.

    Args:
        box: the cube.
        stride: of the rays that are to see it.
        levels: of the grid.
        table: (rows, F) of all levels, one after the other; without the rows that `slots` leaves out.
        density: weights (out, in) of the density network's layers, from F L features to `GEOMETRY` numbers or fewer.
        color: weights of the colour network's layers, from those numbers and 16 harmonics to 3.
        occupancy: cells that rays look into.
        slots: row as the levels count them -> row of the table, or -1; None: all rows are there.

    Raises:
        ValueError: the shapes do not fit one another.
    """

    slots: Int32[Tensor, " all_rows"] | None

    def __init__(
        self,
        box: Box,
        stride: Stride,
        levels: Levels,
        table: Float[Tensor, "rows F"],
        density: Sequence[Float[Tensor, "out in"]],
        color: Sequence[Float[Tensor, "out in"]],
        occupancy: Occupancy,
        slots: Int32[Tensor, " all_rows"] | None = None,
    ) -> None:
        super().__init__()
        self.box, self.stride, self.levels = box, stride, levels
        self.plain = False
        """Whether to run in plain torch: slower, on any device, and differentiable as often as one likes."""
        self.table = nn.Parameter(table)
        self.register_buffer("slots", slots)
        self.density, self.color = _network(density), _network(color)
        self.occupancy = occupancy
        _check(self)

    @property
    def device(self) -> torch.device:
        """Where it is, and rays are looked along."""
        return self.occupancy.bits.device

    @property
    def width(self) -> int:
        """Features of a position, L F."""
        return len(self.levels) * self._parameters["table"].shape[1]  # type: ignore[union-attr]

    def features(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N LF"]:
        """Of positions in the unit cube."""
        run = encode_reference if self.plain else encode
        return run(positions, self.table, self.levels, self.slots)

    def shade(
        self, features: Float[Tensor, "N LF"], directions: Float[Tensor, "R 3"], rays: Int64[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Densities per side of the cube, and colours 0 to 1, of samples of R rays.

        The gradient of a density goes on as if it were never clamped, so that nothing is caught there.
        """
        run = shade_reference if self.plain else shade
        logarithms, colors = run(features, harmonics(directions), rays, *self.weights())
        clamped = logarithms.clamp(max=_LARGEST_LOG_DENSITY)
        return torch.exp(logarithms + (clamped - logarithms).detach()), torch.sigmoid(colors)

    def densities(self, features: Float[Tensor, "N LF"]) -> Float[Tensor, " N"]:
        """Only the densities, without a gradient."""
        return log_densities(features, self.weights()[0]).clamp_(max=_LARGEST_LOG_DENSITY).exp_()

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of the layers of the density network, and of those of the colour network; masked where masks are in force."""
        density, color = ([cast(Tensor, layer.weight) for layer in network] for network in (self.density, self.color))
        return density, color

    def tensors(self) -> Mapping[str, Tensor]:
        """The table and the networks' weights."""
        return dict(self.named_parameters())

    def groups(self) -> Sequence[UnitGroup]:
        """Rows, levels, and what lies inside of the networks; costs where everything else is as it is."""
        return field_groups(self)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """While the context is open, units act with strength 0 to 1: table rows are multiplied, others where read.

        Raises:
            ValueError: `masks` lacks a group, or a mask has another size.
        """
        with masked_tensors(self, scales_of(self, masks)):
            yield

    def cut(self, keep: Keep) -> Field:
        """A smaller field; this one is left as it is.

        Raises:
            ValueError: `keep` does not fit the groups, leaves fewer than they need, or a mask is in force.
        """
        if any(isinstance(part, Masked) for part in self.modules()):
            raise ValueError("a mask is in force; leave its context before cutting")
        return cut_field(self, keep)

    @property
    def bytes(self) -> int:
        """Of all that is needed to render: weights as they are, a bit a cell, and a bit a row where rows were cut."""
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.parameters())
        bitmap = 0 if self.slots is None else (len(self.slots) + 7) // 8
        return weights + bitmap + len(self.occupancy.bits)


def harmonics(directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 16"]:
    """Real spherical harmonics of degrees 0 to 3, orthonormal over the sphere (Sloan 2008, appendix A2)."""
    x, y, z = directions.unbind(dim=1)
    xx, yy, zz, xy = x * x, y * y, z * z, x * y
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            -0.48860251190291987 * y,
            0.48860251190291987 * z,
            -0.48860251190291987 * x,
            1.0925484305920792 * xy,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * zz - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * xy * z,
            -0.4570457994644658 * y * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),
            -0.4570457994644658 * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        dim=1,
    )


def new_field(
    box: Box,
    stride: Stride,
    levels: Levels | None = None,
    features: int = 2,
    *,
    hidden: int = 64,
    color_layers: int = 2,
    occupancy: Occupancy | None = None,
    seed: int = 0,
) -> Field:
    """A field that is to be trained.

    Table entries start uniformly within 1e-4 of 0 (arXiv 2201.05989, section 4), weights within sqrt(6 / (in + out))
    (Glorot and Bengio 2010, equation 16).

    Args:
        box: the cube.
        stride: of the rays.
        levels: of the grid; None: those of `grid_levels`.
        features: of a row, F.
        hidden: neurons of a hidden layer.
        color_layers: hidden layers of the colour network; the density network has one.
        occupancy: cells that rays look into; None: all of 128^3.
        seed: of weights and table.

    Raises:
        ValueError: a number is out of range.
    """
    levels = grid_levels() if levels is None else levels
    if not 1 <= features <= MOST_FEATURES:
        raise ValueError(f"a row must have 1 to {MOST_FEATURES} features, got {features}")
    if not 1 <= hidden <= 1024 or not 1 <= color_layers <= 8:
        raise ValueError(f"hidden must be 1 to 1024, color_layers 1 to 8, got {hidden} and {color_layers}")
    random = torch.Generator().manual_seed(seed)
    table = _uniform((first_rows(levels)[-1], features), _START, random)
    widths = [len(levels) * features, hidden, GEOMETRY], [GEOMETRY + HARMONICS, *[hidden] * color_layers, 3]
    density, color = (
        [_uniform((after, before), (6 / (before + after)) ** 0.5, random) for before, after in pairwise(one)]
        for one in widths
    )
    return Field(box, stride, levels, table, density, color, Occupancy() if occupancy is None else occupancy)


def _uniform(shape: tuple[int, int], limit: float, random: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=random) - 1) * limit


def _network(weights: Sequence[Tensor]) -> nn.ModuleList:
    layers = []
    for weight in weights:
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.weight = nn.Parameter(weight)
        layer.out_features, layer.in_features = weight.shape
        layers.append(layer)
    return nn.ModuleList(layers)


def _check(field: Field) -> None:
    """Raise ValueError unless what one layer gives is what the next one takes."""
    density, color = field.weights()
    if not density or not color or any(weight.ndim != 2 for weight in (*density, *color)):
        raise ValueError("both networks need layers, whose weights are matrices")
    given = len(density[-1])
    for name, network, inputs in (("density", density, field.width), ("color", color, given + HARMONICS)):
        for index, weight in enumerate(network):
            if weight.shape[1] != inputs:
                raise ValueError(f"{name}.{index} takes {weight.shape[1]} numbers, but is given {inputs}")
            inputs = len(weight)
    if not given or len(color[-1]) != 3:
        raise ValueError(f"a field gives a density and 3 colours, got {given} and {len(color[-1])}")
