"""Rays, the cells they look into, and how samples become pixels: kernels against plain torch and known scenes."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.nerf import march as marching
from compress3d.nerf.compositing import LARGEST_DEPTH, composite, composite_reference, sample_weights
from compress3d.nerf.march import Samples, Stride, entry, march, march_reference
from compress3d.nerf.occupancy import Occupancy, pack_bits, unpack_bits
from compress3d.nerf.rays import Box, Rays, rays_of
from tests.contracts import assert_same

RESOLUTION = 16
STRIDE, CONE = Stride(0.013), Stride(0.01, 0.008, 0.05)


def some_rays(count: int = 200) -> Rays:
    """From outside, through points of the cube."""
    random = torch.Generator().manual_seed(3)
    origins = torch.randn(count, 3, generator=random)
    origins = origins / origins.norm(dim=1, keepdim=True) * 2 + 0.5
    directions = torch.rand(count, 3, generator=random) * 1.4 - 0.2 - origins
    return Rays(origins, directions / directions.norm(dim=1, keepdim=True))


def some_cells(share: float = 0.3) -> Occupancy:
    cells = torch.rand((RESOLUTION,) * 3, generator=torch.Generator().manual_seed(4)) < share
    return Occupancy(RESOLUTION, cells)


def packed(count: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Densities, colours, starts, lengths and distances; some rays without a sample."""
    random = torch.Generator().manual_seed(5)
    counts = torch.randint(0, 12, (count,), generator=random) * (torch.arange(count) % 5 != 0)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    total = int(starts[-1])
    densities = torch.rand(total, generator=random, dtype=dtype).square() * 60
    colors = torch.rand(total, 3, generator=random, dtype=dtype)
    lengths = torch.rand(total, generator=random, dtype=dtype) * 0.05 + 0.01
    return densities, colors, starts, lengths, torch.rand(total, generator=random, dtype=dtype) + 1


def assert_goes_on_like_the_kernel(
    walk: Any, rays: Rays, cells: Occupancy, stride: Stride, most: int, calls: int, unlike: int
) -> None:
    """Call after call the kernel's samples; at most `unlike` rays end earlier or later."""
    distances = entry(rays, stride)
    for _ in range(calls):
        ours, onward = march(rays, cells, stride, distances, most)
        theirs, further = walk(rays, cells, stride, distances, most)
        assert_same_samples(ours, theirs)
        alike = torch.isfinite(onward) == torch.isfinite(further)
        assert int((~alike).sum()) <= unlike
        torch.testing.assert_close(onward[alike], further[alike], rtol=1e-4, atol=1e-4)
        distances = onward


def assert_same_samples(ours: Samples, theirs: Samples) -> None:
    """But for points on the border of two cells, which may fall to either."""
    assert (ours.counts - theirs.counts).abs().sum() <= max(2, 0.01 * len(theirs))
    equal = ours.counts == theirs.counts
    for one, other in zip(astuple(ours)[1:], astuple(theirs)[1:], strict=True):
        torch.testing.assert_close(one[equal[ours.rays]], other[equal[theirs.rays]], rtol=1e-4, atol=1e-4)


def test_bits_round_trip() -> None:
    cells = torch.rand(512, generator=torch.Generator().manual_seed(0)) < 0.5
    assert_same(unpack_bits(pack_bits(cells)), cells)
    assert int(pack_bits(torch.arange(8) == 1)[0]) == 2


def test_a_ray_goes_through_its_pixels_centre() -> None:
    viewmats = torch.eye(4)[None].clone()
    viewmats[0, :3, 3] = torch.tensor([0.0, 0.0, 3.0])
    K = torch.tensor([[[10.0, 0.0, 2.0], [0.0, 10.0, 1.5], [0.0, 0.0, 1.0]]])
    rays = rays_of(Cameras(viewmats, K, 4, 3), 0, Box((-1.0, -1.0, -1.0), 2.0))
    assert len(rays) == 12
    torch.testing.assert_close(rays.origins[0], torch.tensor([0.5, 0.5, -1.0]))
    middle = rays.directions[1 * 4 + 2]
    torch.testing.assert_close(middle / middle[2], torch.tensor([0.05, 0.0, 1.0]))


@pytest.mark.parametrize("side", [0.0, math.nan, -1.0])
def test_a_box_without_a_side_is_refused(side: float) -> None:
    with pytest.raises(ValueError, match="box"):
        Box((0.0, 0.0, 0.0), side)


@pytest.mark.parametrize("stride", [STRIDE, CONE])
@pytest.mark.parametrize("share", [0.3, 0.003])
def test_samples_are_those_of_the_reference(share: float, stride: Stride) -> None:
    rays, cells = some_rays(), some_cells(share)
    first = entry(rays, stride)
    ours, onward = march(rays, cells, stride, first)
    theirs, no_further = march_reference(rays, cells, stride, first)
    assert bool(torch.isinf(onward).all()) and bool(torch.isinf(no_further).all())
    assert_same_samples(ours, theirs)


@pytest.mark.parametrize("stride", [STRIDE, CONE])
@pytest.mark.parametrize("most", [1, 3, 20])
def test_the_reference_goes_on_where_the_kernel_does(stride: Stride, most: int) -> None:
    assert_goes_on_like_the_kernel(march_reference, some_rays(), some_cells(), stride, most, calls=4, unlike=2)


@pytest.mark.parametrize("limits", [(1 << 16, 1 << 21, (32, 256)), (37, 200, (5, 256)), (64, 1, (1, 256))])
def test_what_the_reference_holds_at_a_time_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int, tuple[int, int]]
) -> None:
    rays, cells = some_rays(), some_cells()
    whole, onward = march_reference(rays, cells, CONE, entry(rays, CONE), 7)
    for name, limit in zip(("_RAYS_AT_ONCE", "_POINTS_AT_ONCE", "_STEPS_AT_ONCE"), limits, strict=True):
        monkeypatch.setattr(marching, name, limit)
    again, onward_again = march_reference(rays, cells, CONE, entry(rays, CONE), 7)
    assert_same(dict(zip("sdlp", astuple(whole), strict=True)), dict(zip("sdlp", astuple(again), strict=True)))
    assert_same(onward, onward_again)


def test_the_reference_holds_rays_that_begin_inside_or_miss() -> None:
    origins = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [-1.0, 2.0, 0.5], [0.0, 0.5, 0.5]])
    rays = Rays(origins, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, -0.8], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    for shift in (0.0, 0.5):
        first = entry(rays, STRIDE, shift)
        ours, theirs = (walk(rays, Occupancy(8), STRIDE, first)[0] for walk in (march, march_reference))
        assert ours.counts.tolist() == theirs.counts.tolist()
        torch.testing.assert_close(ours.positions, theirs.positions, rtol=1e-4, atol=1e-4)
    none, onward = march_reference(rays[2:3], Occupancy(8), STRIDE, entry(rays[2:3], STRIDE))
    assert none.starts.tolist() == [0, 0] and none.positions.shape == (0, 3)
    assert not bool(torch.isfinite(onward).any())


def test_samples_in_parts_are_the_samples_in_one() -> None:
    rays, cells = some_rays(), some_cells()
    distances = entry(rays, STRIDE)
    whole, _ = march(rays, cells, STRIDE, distances)
    parts: list[Tensor] = []
    seen = torch.zeros(len(rays), dtype=torch.int64)
    while bool(torch.isfinite(distances).any()):
        some, distances = march(rays, cells, STRIDE, distances, most=3)
        assert int(some.counts.max()) <= 3
        parts.append(torch.stack([some.rays.double(), some.distances.double()], dim=1))
        seen += some.counts
    assert_same(seen, whole.counts)
    together = torch.cat(parts)
    order = torch.argsort(together[:, 0], stable=True)
    assert_same(together[order, 1].float(), whole.distances)


def test_every_sample_lies_in_an_occupied_cell_of_the_cube() -> None:
    rays, cells = some_rays(), some_cells()
    for stride in (STRIDE, Stride(0.01, 0.008, 0.05)):
        samples, _ = march(rays, cells, stride, entry(rays, stride))
        assert bool(cells.occupied()[cells.cells_of(samples.positions)].all())
        on_ray = rays.origins[samples.rays] + samples.distances[:, None] * rays.directions[samples.rays]
        torch.testing.assert_close(samples.positions, on_ray.clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_cone_steps_grow_with_the_distance() -> None:
    rays = Rays(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    stride = Stride(0.01, 0.1, 0.05)
    samples, _ = march(rays, Occupancy(8), stride, entry(rays, stride))
    assert float(samples.lengths[0]) == pytest.approx(0.01)
    assert float(samples.lengths[-1]) == pytest.approx(0.05)
    torch.testing.assert_close(samples.distances.diff(), samples.lengths[:-1])


def test_a_ray_that_misses_has_no_sample() -> None:
    rays = Rays(torch.tensor([[-1.0, 2.0, 0.5], [-1.0, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    samples, _ = march(rays, Occupancy(8), STRIDE, entry(rays, STRIDE))
    assert not len(samples)
    assert samples.starts.tolist() == [0, 0, 0]


def test_one_full_ray_has_as_many_samples_as_steps() -> None:
    rays = Rays(torch.tensor([[-1.0, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]]))
    samples, _ = march(rays, Occupancy(8), Stride(0.01), entry(rays, Stride(0.01)))
    assert len(samples) == 100
    assert float(samples.distances[0]) == pytest.approx(1.005)


def test_pixels_are_those_of_the_reference() -> None:
    given = packed()
    for one, other in zip(composite(*given), composite_reference(*given), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_finite_differences_and_those_of_the_reference() -> None:
    densities, colors, starts, lengths, distances = packed(12)
    densities, colors = densities.requires_grad_(), colors.requires_grad_()

    def blend(sigma: Tensor, rgb: Tensor) -> tuple[Tensor, ...]:
        return tuple(composite(sigma, rgb, starts, lengths, distances))

    assert torch.autograd.gradcheck(blend, (densities, colors))
    ours = sum((part * part.cos()).sum() for part in blend(densities, colors))
    theirs = sum((p * p.cos()).sum() for p in composite_reference(densities, colors, starts, lengths, distances))
    for one, other in zip(
        torch.autograd.grad(ours, (densities, colors)),
        torch.autograd.grad(theirs, (densities, colors)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_weights_sum_to_opacity_and_end_with_the_light() -> None:
    densities, colors, starts, lengths, distances = packed()
    weights = sample_weights(densities * 50, starts, lengths)
    pixels = composite(densities * 50, torch.ones_like(colors), starts, lengths, distances)
    torch.testing.assert_close(pixels.opacities, pixels.colors[:, 0])
    torch.testing.assert_close(float(pixels.opacities.sum()), float(weights.sum()))
    hidden = torch.tensor([2 * LARGEST_DEPTH, 1.0], dtype=torch.float64)
    two = (torch.tensor([0, 2]), torch.ones(2, dtype=torch.float64))
    assert float(sample_weights(hidden, *two)[1]) == 0


def test_an_opaque_pixel_hides_the_background_and_an_empty_one_shows_it() -> None:
    starts = torch.tensor([0, 1, 1])
    red = torch.tensor([[1.0, 0.0, 0.0]])
    pixels = composite(torch.tensor([1e4]), red, starts, torch.ones(1), torch.ones(1))
    torch.testing.assert_close(pixels.over(torch.tensor([0.0, 0.0, 1.0])), torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))


def test_occupancy_follows_the_field() -> None:
    cells = Occupancy(16)
    random = torch.Generator().manual_seed(0)

    def ball(positions: Tensor) -> Tensor:
        return 100.0 * ((positions - 0.5).norm(dim=1) < 0.3)

    cells.update(ball, 0.01, random)
    assert 0.05 < cells.share < 0.2
    inside = cells.cells_of(torch.tensor([[0.5, 0.5, 0.5], [0.05, 0.05, 0.05]]))
    assert cells.occupied()[inside].tolist() == [True, False]
    for _ in range(200):
        cells.update(lambda positions: 100.0 * ((positions - 0.8).norm(dim=1) < 0.2), 0.01, random, samples=1024)
    inside = cells.cells_of(torch.tensor([[0.4, 0.5, 0.5], [0.8, 0.8, 0.8]]))
    assert cells.occupied()[inside].tolist() == [False, True]


def test_blocks_follow_the_bits() -> None:
    cells = Occupancy(16, torch.zeros(16, 16, 16, dtype=torch.bool))
    assert cells.blocks.tolist() == [0] * 8
    chosen = torch.zeros(16, 16, 16, dtype=torch.bool)
    chosen[9, 3, 15] = True
    cells.bits.copy_(pack_bits(chosen.flatten()))
    assert cells.blocks.nonzero().tolist() == [[1 + 2 * (0 + 2 * 1)]]


def test_cells_that_cannot_hold_anything_stay_empty() -> None:
    possible = torch.zeros(16, 16, 16, dtype=torch.bool)
    possible[3, 2, 1] = True
    cells = Occupancy(16, possible)
    assert cells.occupied().nonzero().tolist() == [[1 + 16 * (2 + 16 * 3)]]
    cells.update(lambda positions: torch.full((len(positions),), 1e3), 0.01, torch.Generator())
    assert int(cells.occupied().sum()) == 1


def test_samples_know_their_rays() -> None:
    samples = Samples(torch.tensor([0, 2, 2, 3]), torch.ones(3), torch.ones(3), torch.zeros(3, 3))
    assert samples.rays.tolist() == [0, 0, 2]
