"""The two networks of a field over many samples: rectified hidden layers, no biases.

Samples of one ray share its direction, so they are given the ray's harmonics by its index. In the backward pass
samples are run again rather than remembered: that saves the memory of all activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress3d.nerf import network_kernels as kernels

Weights = Sequence[Float[Tensor, "out in"]]


def shade(
    features: Float[Tensor, "N LF"],
    harmonics: Float[Tensor, "R 16"],
    rays: Int64[Tensor, " N"],
    density: Weights,
    color: Weights,
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
    """Logarithms of densities, and colours before the sigmoid; differentiable once in features and weights.

    On the CPU by numba kernels, equal from run to run and for any number of threads; elsewhere by `shade_reference`.

    Args:
        features: of the samples.
        harmonics: of the rays' directions.
        rays: the ray of each sample.
        density: weights of the density network.
        color: weights of the colour network, which takes what that one gives, and the harmonics.
    """
    if features.device.type != "cpu":
        return shade_reference(features, harmonics, rays, density, color)
    return _Shade.apply(features, harmonics, rays, len(density), *density, *color)


def shade_reference(
    features: Float[Tensor, "N LF"],
    harmonics: Float[Tensor, "R 16"],
    rays: Int64[Tensor, " N"],
    density: Weights,
    color: Weights,
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
    """`shade` in plain torch, on any device, differentiable as often as one likes."""
    geometry = _layers(features, density)
    return geometry[:, 0], _layers(torch.cat([geometry, harmonics[rays]], dim=1), color)


@torch.no_grad()
def log_densities(features: Float[Tensor, "N LF"], density: Weights) -> Float[Tensor, " N"]:
    """Only the logarithms of the densities."""
    weights = [*density[:-1], density[-1][:1]]
    if features.device.type != "cpu":
        return _layers(features, weights)[:, 0]
    logarithms = features.new_empty(len(features))
    none = np.empty((0, 0), _array(features).dtype)
    kernels.run_networks(
        _array(features), none, _NO_RAYS, _flat(weights), _widths(weights), _NO_WIDTHS, logarithms.numpy(), none
    )
    return logarithms


def _layers(x: Tensor, weights: Weights) -> Tensor:
    for index, weight in enumerate(weights):
        x = (torch.relu(x) if index else x) @ weight.T
    return x


class _Shade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, harmonics: Tensor, rays: Tensor, split: int, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features, harmonics, rays, *weights)
        ctx.split = split
        logarithms, colors = features.new_empty(len(features)), features.new_empty(len(features), len(weights[-1]))
        kernels.run_networks(
            _array(features), _array(harmonics), _array(rays), _flat(weights), _widths(weights[:split]),
            _widths(weights[split:]), logarithms.numpy(), colors.numpy(),
        )  # fmt: skip
        return logarithms, colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_logarithms: Tensor, to_colors: Tensor) -> tuple[Tensor | None, ...]:
        features, harmonics, rays, *weights = ctx.saved_tensors
        flat = _flat(weights)
        to_features = torch.empty_like(features, memory_format=torch.contiguous_format)
        gradients = torch.zeros(kernels.CHUNKS, len(flat), dtype=features.dtype)
        kernels.run_networks_backward(
            _array(features), _array(harmonics), _array(rays), flat, _widths(weights[: ctx.split]),
            _widths(weights[ctx.split :]), _array(to_logarithms), _array(to_colors), to_features.numpy(),
            gradients.numpy(),
        )  # fmt: skip
        parts = gradients.sum(dim=0).split([weight.numel() for weight in weights])
        to_weights = [part.reshape(weight.shape) for part, weight in zip(parts, weights, strict=True)]
        return to_features, None, None, None, *to_weights


_NO_RAYS = np.empty(0, np.int64)
_NO_WIDTHS = np.empty(0, np.int64)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _flat(weights: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([weight.detach().reshape(-1) for weight in weights]).numpy()


def _widths(weights: Sequence[Tensor]) -> np.ndarray:
    return np.array([weights[0].shape[1], *(len(weight) for weight in weights)], np.int64)
