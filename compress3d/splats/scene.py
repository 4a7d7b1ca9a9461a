"""A Gaussian-splat scene: its tensors, and its face as something prunable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.units import Keep, Member, UnitGroup, check_keep, mask_of

SH_COEFFICIENTS = {0: 0, 1: 3, 2: 8, 3: 15}
"""Spherical-harmonic degree -> number of coefficients above degree 0."""

GAUSSIANS = "gaussians"
"""Name of the one group of units that a scene has."""


@dataclass(slots=True, eq=False)
class SplatScene:
    """N anisotropic Gaussians with raw (pre-activation) float32 storage, in the frame of an INRIA PLY.

    Args:
        means: (N, 3) centres in world units.
        quats: (N, 4) rotations as (w, x, y, z), not necessarily normalised.
        scales: (N, 3) natural logarithms of the standard deviations along the rotated axes.
        opacities: (N,) logits of the peak opacity.
        sh0: (N, 1, 3) degree-0 spherical-harmonic coefficients; colour = 0.5 + 0.28209479 * sh0.
        shN: (N, K, 3) higher coefficients, K in {0, 3, 8, 15} for degree 0 to 3.
        antialiased: True when the scene was trained with the mip (antialiased) rasteriser.

    Raises:
        ValueError: a tensor's shape does not fit the others, or it is not float32.
    """

    means: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    scales: Float[Tensor, "N 3"]
    opacities: Float[Tensor, " N"]
    sh0: Float[Tensor, "N 1 3"]
    shN: Float[Tensor, "N K 3"]
    antialiased: bool = False
    _mask: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.means)
        coefficients = self.shN.shape[1] if self.shN.ndim == 3 else -1
        if coefficients not in SH_COEFFICIENTS.values():
            raise ValueError(f"shN must be (N, K, 3) with K in {{0, 3, 8, 15}}, got {tuple(self.shN.shape)}")
        shapes = {
            "means": (n, 3),
            "quats": (n, 4),
            "scales": (n, 3),
            "opacities": (n,),
            "sh0": (n, 1, 3),
            "shN": (n, coefficients, 3),
        }
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != shapes[name]:
                raise ValueError(f"{name} must have shape {shapes[name]}, got {tuple(tensor.shape)}")
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} must be float32, got {tensor.dtype}")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """0 to 3."""
        return {k: degree for degree, k in SH_COEFFICIENTS.items()}[self.shN.shape[1]]

    @property
    def bytes_per_gaussian(self) -> int:
        """Bytes of one Gaussian as raw float32."""
        return 4 * (14 + 3 * self.shN.shape[1])

    def peak_opacities(self) -> Float[Tensor, " N"]:
        """Opacity in [0, 1] after the sigmoid, times the mask that is in force."""
        opacities = torch.sigmoid(self.opacities)
        return opacities if self._mask is None else opacities * self._mask

    def tensors(self) -> Mapping[str, Tensor]:
        return {
            "means": self.means,
            "quats": self.quats,
            "scales": self.scales,
            "opacities": self.opacities,
            "sh0": self.sh0,
            "shN": self.shN,
        }

    def with_tensors(self, **tensors: Tensor) -> Self:
        """A scene with some of its tensors replaced."""
        fields: dict[str, Any] = dict(tensors)
        return replace(self, **fields)

    def select(self, index: Tensor) -> Self:
        """The Gaussians at `index` ((M,) int64 or (N,) bool), in that order."""
        return self.with_tensors(**{name: tensor[index] for name, tensor in self.tensors().items()})

    def with_sh_degree(self, degree: int) -> Self:
        """The scene with coefficients above `degree` dropped, or zeros added up to it."""
        if degree not in SH_COEFFICIENTS:
            raise ValueError(f"degree must be 0 to 3, got {degree}")
        wanted = SH_COEFFICIENTS[degree]
        shN = self.shN[:, :wanted]
        if shN.shape[1] < wanted:
            shN = torch.cat([shN, shN.new_zeros(len(self), wanted - shN.shape[1], 3)], dim=1)
        return replace(self, shN=shN.contiguous())

    def to(self, device: torch.device | str) -> Self:
        """The scene with its tensors on `device`."""
        return self.with_tensors(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def groups(self) -> Sequence[UnitGroup]:
        n = len(self)
        members = tuple(Member(name) for name, tensor in self.tensors().items() if tensor.numel())
        cost = {"bytes": torch.full((n,), float(self.bytes_per_gaussian)), "gaussians": torch.ones(n)}
        return (UnitGroup(GAUSSIANS, n, members, cost),)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Multiply each Gaussian's opacity by `masks["gaussians"]` ((N,), in [0, 1]) while the context is open."""
        before, self._mask = self._mask, mask_of(masks, GAUSSIANS, len(self))
        try:
            yield
        finally:
            self._mask = before

    def cut(self, keep: Keep) -> Self:
        check_keep(keep, self.groups())
        return self.select(keep[GAUSSIANS])

    def _repr_html_(self) -> str:
        """A picture and a line about the scene, for notebooks."""
        from compress3d.splats.preview import facts, preview  # which draws, and drawing needs scenes
        from secateur.report.notebook import picture_html

        return picture_html(preview(self), facts(self))

    def _repr_png_(self) -> bytes:
        from compress3d.splats.preview import preview
        from secateur.report.notebook import png

        return png(preview(self))
