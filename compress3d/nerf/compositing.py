"""Samples along rays become pixels: emission and absorption, front to back.

Transmittance T_i = exp(-sum over j < i of sigma_j delta_j), weight w_i = T_i (1 - exp(-sigma_i delta_i)) (Max 1995;
Mildenhall et al., arXiv 2003.08934, equation 3). A ray ends before the first sample with T_i below `TRANSMITTANCE_MIN`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress3d.nerf.hashgrid_kernels import FAST_MATH

TRANSMITTANCE_MIN = 1e-4
LARGEST_DEPTH = -math.log(TRANSMITTANCE_MIN)
"""The optical depth at which a ray ends."""


class Pixels(NamedTuple):
    """What R rays see.

    Args:
        colors: (R, 3), multiplied by opacity: without a background.
        opacities: (R,) 0 to 1.
        depths: (R,) sum of weight times distance, in the unit of the distances.
    """

    colors: Float[Tensor, "R 3"]
    opacities: Float[Tensor, " R"]
    depths: Float[Tensor, " R"]

    def over(self, background: Float[Tensor, "*R 3"]) -> Float[Tensor, "R 3"]:
        """Colours in front of a background."""
        return self.colors + (1 - self.opacities[:, None]) * background


def composite(
    densities: Float[Tensor, " N"],
    colors: Float[Tensor, "N 3"],
    starts: Int64[Tensor, " rays"],
    lengths: Float[Tensor, " N"],
    distances: Float[Tensor, " N"],
) -> Pixels:
    """Blend packed samples, ray by ray; differentiable in densities and colours.

    On the CPU by numba kernels, once; elsewhere by `composite_reference`.

    Args:
        densities: sigma of N samples, at least 0, per unit of length.
        colors: of the samples.
        starts: (R + 1,) ray r has samples starts[r] to starts[r + 1].
        lengths: delta of the samples.
        distances: of the samples from their rays' origins.
    """
    if densities.device.type != "cpu":
        return composite_reference(densities, colors, starts, lengths, distances)
    return Pixels(*_Composite.apply(densities, colors, starts, lengths, distances))


def composite_reference(
    densities: Float[Tensor, " N"],
    colors: Float[Tensor, "N 3"],
    starts: Int64[Tensor, " rays"],
    lengths: Float[Tensor, " N"],
    distances: Float[Tensor, " N"],
) -> Pixels:
    """`composite` in plain torch, on any device, differentiable as often as one likes."""
    weights = sample_weights(densities, starts, lengths)
    rays = torch.repeat_interleave(starts.diff())
    parts = torch.cat([colors, torch.ones_like(densities)[:, None], distances[:, None].to(densities)], dim=1)
    sums = densities.new_zeros(len(starts) - 1, 5).index_add(0, rays, weights[:, None] * parts)
    return Pixels(sums[:, :3], sums[:, 3], sums[:, 4])


def sample_weights(
    densities: Float[Tensor, " N"], starts: Int64[Tensor, " rays"], lengths: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """w_i of each sample, 0 behind the end of its ray, in plain torch."""
    if not len(densities):
        return densities
    before, depths = optical_depths(densities, starts, lengths)
    weights = torch.exp(-before) * -torch.expm1(-depths)
    return torch.where(before < LARGEST_DEPTH, weights, 0).to(densities)


def optical_depths(
    densities: Float[Tensor, " N"], starts: Int64[Tensor, " rays"], lengths: Float[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Of each sample, of one at least, the depth of all before it on its ray, and its own; float64, in plain torch."""
    depths = (densities * lengths.to(densities)).double()
    before = depths.cumsum(0) - depths
    rays = torch.repeat_interleave(starts.diff())
    # The sum before a ray's first sample.
    return before - before[starts[:-1].clamp(max=len(densities) - 1)][rays], depths


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, densities: Tensor, colors: Tensor, starts: Tensor, lengths: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rays = len(starts) - 1
        pixels, opacities, depths = (densities.new_zeros(shape) for shape in ((rays, 3), (rays,), (rays,)))
        _blend(
            _array(densities), _array(colors), _array(starts), _array(lengths), _array(distances), pixels.numpy(),
            opacities.numpy(), depths.numpy(),
        )  # fmt: skip
        ctx.save_for_backward(densities, colors, starts, lengths, distances, pixels, opacities, depths)
        return pixels, opacities, depths

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_pixels: Tensor, to_opacities: Tensor, to_depths: Tensor) -> tuple[Tensor | None, ...]:
        densities, colors, starts, lengths, distances, pixels, opacities, depths = ctx.saved_tensors
        to_densities = torch.zeros_like(densities, memory_format=torch.contiguous_format)
        to_colors = torch.zeros_like(colors, memory_format=torch.contiguous_format)
        _blend_backward(
            _array(densities), _array(colors), _array(starts), _array(lengths), _array(distances), _array(pixels),
            _array(opacities), _array(depths), _array(to_pixels), _array(to_opacities), _array(to_depths),
            to_densities.numpy(), to_colors.numpy(),
        )  # fmt: skip
        return to_densities, to_colors, None, None, None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def _blend(densities, colors, starts, lengths, distances, pixels, opacities, depths):  # pragma: no cover - compiled
    real = densities.dtype.type
    for r in nb.prange(len(starts) - 1):
        depth = red = green = blue = opacity = far = real(0)
        for n in range(np.uintp(starts[r]), np.uintp(starts[r + 1])):
            if depth >= real(LARGEST_DEPTH):
                break
            thickness = densities[n] * lengths[n]
            weight = math.exp(-depth) * -math.expm1(-thickness)
            depth += thickness
            red += weight * colors[n, 0]
            green += weight * colors[n, 1]
            blue += weight * colors[n, 2]
            opacity += weight
            far += weight * distances[n]
        pixels[r, 0], pixels[r, 1], pixels[r, 2] = red, green, blue
        opacities[r], depths[r] = opacity, far


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def _blend_backward(
    densities, colors, starts, lengths, distances, pixels, opacities, depths, to_pixels, to_opacities, to_depths,
    to_densities, to_colors,
):  # fmt: skip  # pragma: no cover - compiled
    """d w_i / d sigma_i = delta_i T_(i+1) and d w_j / d sigma_i = -delta_i w_j for j > i, with what is left of a sum
    for all j > i."""
    real = densities.dtype.type
    for r in nb.prange(len(starts) - 1):
        a, b, c = to_pixels[r, 0], to_pixels[r, 1], to_pixels[r, 2]
        d, e = to_opacities[r], to_depths[r]
        left = a * pixels[r, 0] + b * pixels[r, 1] + c * pixels[r, 2] + d * opacities[r] + e * depths[r]
        depth = real(0)
        for n in range(np.uintp(starts[r]), np.uintp(starts[r + 1])):
            if depth >= real(LARGEST_DEPTH):
                break
            thickness = densities[n] * lengths[n]
            weight = math.exp(-depth) * -math.expm1(-thickness)
            depth += thickness
            worth = a * colors[n, 0] + b * colors[n, 1] + c * colors[n, 2] + d + e * distances[n]
            left -= weight * worth
            to_densities[n] = lengths[n] * (math.exp(-depth) * worth - left)
            to_colors[n, 0], to_colors[n, 1], to_colors[n, 2] = weight * a, weight * b, weight * c
