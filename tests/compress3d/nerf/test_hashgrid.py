"""The hash grid's numba kernels against plain torch, finite differences, and what a grid must be at its vertices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress3d.nerf.hashgrid import encode, encode_reference, vertex_rows
from compress3d.nerf.levels import Level, first_rows, grid_levels
from tests.contracts import assert_deterministic

LEVELS = grid_levels(5, 10, 4, 40)


def some_table(levels: tuple[Level, ...] = LEVELS, features: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(first_rows(levels)[-1], features, generator=random, dtype=dtype)


def some_positions(count: int = 300, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(2)
    inside = torch.rand(count - 4, 3, generator=random, dtype=dtype)
    return torch.cat([inside, torch.tensor([[0, 0, 0], [1, 1, 1], [-0.2, 0.5, 1.7], [0, 1, 0.5]], dtype=dtype)])


def some_slots(levels: tuple[Level, ...] = LEVELS) -> tuple[Tensor, int]:
    """Every third row gone."""
    left = torch.arange(first_rows(levels)[-1]) % 3 != 0
    slots = torch.where(left, left.cumsum(0) - 1, -1).int()
    return slots, int(left.sum())


def test_levels_follow_the_paper() -> None:
    levels = grid_levels(16, 19, 16, 2048)
    assert [levels[0].resolution, levels[-1].resolution] == [16, 2048]
    growth = levels[5].scale + 1, levels[4].scale + 1
    assert growth[0] / growth[1] == pytest.approx(1.3819, abs=1e-4)
    assert [level.hashed for level in levels[:6]] == [False] * 5 + [True]
    assert all(level.rows <= 1 << 19 for level in levels)
    assert levels[0].rows == 17**3


@pytest.mark.parametrize(
    ("count", "log2_table", "lowest", "highest"), [(0, 14, 16, 32), (4, 30, 16, 32), (4, 14, 64, 32), (4, 14, 1, 32)]
)
def test_levels_out_of_range_are_refused(count: int, log2_table: int, lowest: int, highest: int) -> None:
    with pytest.raises(ValueError, match="must"):
        grid_levels(count, log2_table, lowest, highest)


def test_a_level_whose_rows_are_not_its_scales_is_refused() -> None:
    with pytest.raises(ValueError, match="dense level"):
        Level(15.0, 4096, hashed=False)
    with pytest.raises(ValueError, match="hashed level"):
        Level(99.0, 5000, hashed=True)


def test_hash_is_that_of_the_paper_in_32_bits() -> None:
    level = Level(999.0, 1 << 14, hashed=True)
    i, j, k = 700, 801, 999
    wanted = (i ^ (j * 2_654_435_761 % 2**32) ^ (k * 805_459_861 % 2**32)) % 2**14
    assert int(vertex_rows(torch.tensor([[i, j, k]]), level)) == wanted


@pytest.mark.parametrize("features", [2, 4])
@pytest.mark.parametrize("cut", [False, True])
def test_kernels_are_the_reference(features: int, cut: bool) -> None:
    slots, left = some_slots()
    table = some_table(features=features)[: left if cut else None].requires_grad_()
    positions = some_positions().requires_grad_()
    given = (positions, table, LEVELS, slots if cut else None)
    ours, theirs = encode(*given), encode_reference(*given)
    torch.testing.assert_close(ours, theirs)
    slopes = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3), dtype=ours.dtype)
    for mine, reference in zip(
        torch.autograd.grad(ours, (table, positions), slopes),
        torch.autograd.grad(theirs, (table, positions), slopes),
        strict=True,
    ):
        inside = ((positions > 0) & (positions < 1)).all(dim=1)
        chosen = slice(None) if mine.shape == table.shape else inside
        torch.testing.assert_close(mine[chosen], reference[chosen])


def test_gradients_are_finite_differences() -> None:
    levels = grid_levels(3, 8, 2, 9)
    table = some_table(levels).requires_grad_()
    positions = (some_positions(12)[:8] * 0.98 + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: encode(x, t, levels), (positions, table), eps=1e-7, atol=1e-4)


def test_float32_is_float64_rounded() -> None:
    wide = encode(some_positions(), some_table(), LEVELS)
    narrow = encode(some_positions().float(), some_table().float(), LEVELS)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)


def test_features_at_a_vertex_are_its_row() -> None:
    table, starts = some_table(), first_rows(LEVELS)
    for index, level in enumerate(LEVELS):
        vertices = torch.tensor([[1, 2, 1], [int(level.scale), 1, 2]])
        positions = (vertices.double() - 0.5) / level.scale
        features = encode(positions, table, LEVELS)[:, 2 * index : 2 * index + 2]
        torch.testing.assert_close(features, table[starts[index] + vertex_rows(vertices, level)])


def test_a_dense_level_is_dense_interpolation() -> None:
    levels = grid_levels(1, 14, 8, 8)
    table, positions = some_table(levels), some_positions()
    side, scale = levels[0].side, levels[0].scale
    volume = table.reshape(side, side, side, 2).permute(3, 0, 1, 2)[None]
    at = (positions.clamp(0, 1) * scale + 0.5) / (side - 1) * 2 - 1
    wanted = functional.grid_sample(volume, at[None, :, None, None], align_corners=True)[0, :, :, 0, 0].T
    torch.testing.assert_close(encode(positions, table, levels), wanted)


def test_the_same_call_gives_the_same_bits() -> None:
    def gradient() -> Tensor:
        table = some_table(dtype=torch.float32).requires_grad_()
        features = encode(some_positions(5000, torch.float32), table, LEVELS)
        return torch.autograd.grad(features.square().sum(), table)[0]

    assert_deterministic(gradient)


def test_no_positions_and_no_rows_are_nothing() -> None:
    assert encode(torch.zeros(0, 3), some_table().float(), LEVELS).shape == (0, 10)
    gone = torch.full((first_rows(LEVELS)[-1],), -1, dtype=torch.int32)
    features = encode(some_positions(), torch.zeros(0, 2, dtype=torch.float64), LEVELS, gone)
    assert not features.any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        encode(torch.zeros(4, 2), some_table().float(), LEVELS)
    with pytest.raises(ValueError, match="rows"):
        encode(torch.zeros(4, 3), torch.zeros(7, 2), LEVELS)
    with pytest.raises(ValueError, match="features"):
        encode(torch.zeros(4, 3), torch.zeros(7, 9), LEVELS)
    with pytest.raises(ValueError, match="slots"):
        encode(torch.zeros(4, 3), torch.zeros(7, 2), LEVELS, torch.zeros(3, dtype=torch.int32))
