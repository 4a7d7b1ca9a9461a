"""What neural splat fields share: units that are decoded to Gaussians for one camera, and their face as a Prunable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import rasterization
from secateur.training.seeding import seeded
from secateur.units import Keep, Member, UnitGroup, check_keep, mask_of

REACH = 3.33
"""Standard deviations from its centre to which the rasteriser draws a Gaussian."""

MARGIN = 2.0
"""Pixels that the rasteriser's low-pass filter adds to every Gaussian, at most."""


@dataclass(frozen=True, slots=True)
class NeuralGaussians:
    """M Gaussians, activated, as they look from one position.

    Args:
        means: (M, 3) centres.
        quats: (M, 4) unit quaternions, wxyz.
        scales: (M, 3) linear standard deviations.
        opacities: (M,); where all slots of a unit are given, those at most 0 stand for no Gaussian.
        colors: (M, 3) RGB.
        slots: (M,) which Gaussian of the field each is: unit * slots per unit + number within the unit.
    """

    means: Float[Tensor, "M 3"]
    quats: Float[Tensor, "M 4"]
    scales: Float[Tensor, "M 3"]
    opacities: Float[Tensor, " M"]
    colors: Float[Tensor, "M 3"]
    slots: Int64[Tensor, " M"]

    def __len__(self) -> int:
        return len(self.means)

    def select(self, index: Tensor) -> Self:
        """Those at `index` ((K,) int64 or (M,) bool), in that order."""
        chosen: dict[str, Any] = {one.name: getattr(self, one.name)[index] for one in fields(self)}
        return replace(self, **chosen)


class NeuralField(nn.Module, ABC):
    """Units (anchors, leaves) that small networks decode to Gaussians, differently for each camera."""

    method: ClassVar[str]
    """What the field is called in files."""

    group: ClassVar[str]
    """Name of the group of its units."""

    slots_per_unit: int
    """How many Gaussians a unit stands for."""

    _mask: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int:
        """How many units."""

    @abstractmethod
    def settings_record(self) -> dict[str, Any]:
        """The settings as plain values: with the state dict, all that `from_state` needs."""

    @classmethod
    @abstractmethod
    def from_state(cls, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The field of `settings_record` and `state_dict`.

        Raises:
            ValueError: they do not fit one another; names the setting or the tensor.
        """

    @abstractmethod
    def gaussians(self, position: Float[Tensor, 3], units: Int64[Tensor, " U"] | None = None) -> NeuralGaussians:
        """All slots of `units` (of all units when None), as they look from `position`; plain differentiable torch."""

    @abstractmethod
    def bounds(self) -> tuple[Float[Tensor, "N 3"], Float[Tensor, " N"]]:
        """Centre and radius of a ball for each unit outside of which it draws nothing."""

    @abstractmethod
    def unit_rows(self) -> tuple[str, ...]:
        """Names of the tensors whose rows the units own."""

    @abstractmethod
    def cut(self, keep: Keep) -> Self:
        """A new, smaller field of the kept units; raises ValueError where `keep` does not fit `groups`."""

    @abstractmethod
    def learning_rates(self, extent: float) -> dict[str, tuple[float, float]]:
        """Name of a parameter or network -> Adam's rate at the first and at the last step; `extent` in world units."""

    def regularization(self, gaussians: NeuralGaussians) -> Tensor:
        """What training adds to the photometric loss."""
        return gaussians.opacities.new_zeros(())

    def decode(self, camera: Cameras) -> NeuralGaussians:
        """The Gaussians that one camera sees: those of units in its frustum, where their opacity is above 0.

        Args:
            camera: a batch of one.

        Raises:
            ValueError: it is not one camera.
        """
        return self.decode_units(camera, self.units_in_view(camera))

    def decode_units(self, camera: Cameras, units: Int64[Tensor, " U"]) -> NeuralGaussians:
        """`decode` of given units, whether in the frustum or not."""
        every = self.gaussians(position_of(camera), units)
        chosen = every.select(every.opacities > 0)
        if self._mask is None:
            return chosen
        return replace(chosen, opacities=chosen.opacities * self._mask[chosen.slots // self.slots_per_unit])

    @torch.no_grad()
    def units_in_view(self, camera: Cameras) -> Int64[Tensor, " U"]:
        """Units that may touch the image."""
        return touches(*self.bounds(), camera).nonzero()[:, 0]

    def tensors(self) -> Mapping[str, Tensor]:
        return dict(self.named_parameters()) | dict(self.named_buffers())

    def groups(self) -> Sequence[UnitGroup]:
        count, tensors = len(self), self.tensors()
        owned = [tensors[name] for name in self.unit_rows()]
        params = sum(tensor[:1].numel() for tensor in owned)
        size = sum(tensor[:1].numel() * tensor.element_size() for tensor in owned)
        cost = {"params": torch.full((count,), float(params)), "bytes": torch.full((count,), float(size))}
        return (UnitGroup(self.group, count, tuple(Member(name) for name in self.unit_rows()), cost),)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Multiply the opacities of each unit by its mask ((N,), in [0, 1]) while the context is open.

        Raises:
            ValueError: there is no mask of that shape.
        """
        before, self._mask = self._mask, mask_of(masks, self.group, len(self))
        try:
            yield
        finally:
            self._mask = before

    def kept_rows(self, keep: Keep) -> Int64[Tensor, " K"]:
        """Indices of the kept units."""
        check_keep(keep, self.groups())
        return keep[self.group].nonzero()[:, 0]


def network(inputs: int, hidden: int, outputs: int, seed: int) -> nn.Sequential:
    """A perceptron with one hidden layer, initialised as torch does it from `seed`."""
    with seeded(seed, torch.device("cpu")):
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a tensor is floating-point of that shape."""
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise ValueError(f"tensor {name!r} must be {shape} of floats, got {tensor.dtype} {tuple(tensor.shape)}")


def load_exactly(field: NeuralField, state: Mapping[str, Tensor]) -> None:
    """Give a field the tensors of `state` (copied), in their precision and where they are.

    Raises:
        ValueError: tensors are missing, unknown or of another shape.
    """
    own = field.state_dict()
    for name in sorted(own.keys() ^ state.keys()):
        raise ValueError(f"tensor {name!r} is {'missing' if name in own else 'unknown'}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"tensor {name!r} must be {tuple(tensor.shape)}, got {tuple(state[name].shape)}")
    field.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, assign=True)


def position_of(camera: Cameras) -> Float[Tensor, 3]:
    """Where one camera stands.

    Raises:
        ValueError: it is not one camera.
    """
    if len(camera) != 1:
        raise ValueError(f"a field is decoded for one camera at a time, got {len(camera)}")
    return camera.positions[0]


def touches(centres: Float[Tensor, "N 3"], radii: Float[Tensor, " N"], camera: Cameras) -> Bool[Tensor, " N"]:
    """Which balls reach into the frustum of one camera: not wholly behind it, nor beyond one of its four sides."""
    viewmat, K = camera.viewmats[0].to(centres), camera.Ks[0].to(centres)
    x, y, z = (centres @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(dim=1)
    inside = z + radii > 0
    for along, focal, centre, size in ((x, K[0, 0], K[0, 2], camera.width), (y, K[1, 1], K[1, 2], camera.height)):
        low, high = (-centre - MARGIN) / focal, (size - centre + MARGIN) / focal
        inside &= along - low * z > -radii * (1 + low**2).sqrt()
        inside &= high * z - along > -radii * (1 + high**2).sqrt()
    return inside


def rasterize(
    gaussians: NeuralGaussians, camera: Cameras, background: Float[Tensor, 3]
) -> tuple[Float[Tensor, "H W 3"], dict[str, Any]]:
    """The image of one camera, and the rasteriser's meta."""
    images, _, meta = rasterization(
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors,
        camera.viewmats.to(gaussians.means), camera.Ks.to(gaussians.means), camera.width, camera.height,
        backgrounds=background.to(gaussians.means)[None],
    )  # fmt: skip
    return images[0], meta


def render_field(
    field: NeuralField, cameras: Cameras, background: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Iterator[Float[Tensor, "H W 3"]]:
    """Yield the image of each camera in turn; differentiable."""
    for index in range(len(cameras)):
        camera = cameras[index]
        yield rasterize(field.decode(camera), camera, torch.tensor(background))[0]
