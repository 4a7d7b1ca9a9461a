"""The networks' kernels against plain torch, finite differences, and any number of threads."""

from __future__ import annotations

from itertools import pairwise

import numba as nb
import pytest
import torch
from torch import Tensor

from compress3d.nerf.network_kernels import LANES
from compress3d.nerf.networks import log_densities, shade, shade_reference
from tests.contracts import assert_same

Network = tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]


def some(count: int, density: list[int], color: list[int], dtype: torch.dtype = torch.float64) -> Network:
    """Features, harmonics of five rays, rays, and weights of the given widths."""
    random = torch.Generator().manual_seed(len(density) + count)

    def weights(widths: list[int]) -> list[Tensor]:
        pairs = pairwise(widths)
        return [torch.randn(after, before, generator=random, dtype=dtype).requires_grad_() for before, after in pairs]

    features = torch.randn(count, density[0], generator=random, dtype=dtype).requires_grad_()
    harmonics = torch.randn(5, color[0] - density[-1], generator=random, dtype=dtype)
    return features, harmonics, torch.randint(5, (count,), generator=random), weights(density), weights(color)


@pytest.mark.parametrize(
    ("count", "density", "color"),
    [
        (1, [8, 16, 16], [32, 16, 3]),
        (LANES, [5, 7, 3], [19, 9, 11, 3]),
        (3 * LANES + 17, [32, 64, 16], [32, 64, 3]),
        (40, [6, 4], [20, 3]),
    ],
)
def test_kernels_are_the_reference(count: int, density: list[int], color: list[int]) -> None:
    given = some(count, density, color)
    ours, theirs = shade(*given), shade_reference(*given)
    wanted = [given[0], *given[3], *given[4]]
    gradients = [
        torch.autograd.grad(logarithms.sin().sum() + colors.cos().sum(), wanted)
        for logarithms, colors in (ours, theirs)
    ]
    for one, other in zip((*ours, *gradients[0]), (*theirs, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(log_densities(given[0], given[3]), theirs[0].detach())


def test_gradients_are_finite_differences() -> None:
    features, harmonics, rays, density, color = some(6, [4, 6, 3], [6, 5, 3])

    def run(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return shade(x, harmonics, rays, weights[:2], weights[2:])

    assert torch.autograd.gradcheck(run, (features, *density, *color))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    given = some(1500, [8, 16, 16], [32, 16, 3], torch.float32)
    threads, results = nb.get_num_threads(), []
    try:
        for count in {1, threads}:
            nb.set_num_threads(count)
            logarithms, colors = shade(*given)
            loss = logarithms.square().sum() + colors.square().sum()
            results.append([*torch.autograd.grad(loss, [given[0], *given[3], *given[4]])])
    finally:
        nb.set_num_threads(threads)
    assert_same(results[0], results[-1])


def test_no_samples_are_nothing() -> None:
    logarithms, colors = shade(*some(0, [8, 16, 16], [32, 16, 3]))
    assert logarithms.shape == (0,)
    assert colors.shape == (0, 3)
