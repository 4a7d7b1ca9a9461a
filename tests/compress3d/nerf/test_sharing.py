"""Rows that share parameters: exact where there is room for all, even, unbiased, and trained by one gradient."""

from __future__ import annotations

import pytest
import torch

from compress3d.nerf.sharing import Sharing, share, sharing_for
from tests.compress3d.nerf.fields import QUICK, some_field
from tests.compress3d.splats.photographed import photographed
from tests.contracts import assert_deterministic, assert_same


def test_with_room_for_all_every_row_has_its_own() -> None:
    field = some_field()
    rows = len(field.table)
    for size in (rows, rows + 5):
        sharing = sharing_for(field, size)
        assert len(sharing.slots.unique()) == rows
        again = sharing.expand(sharing.fit(field.table.detach()))
        torch.testing.assert_close(again, field.table.detach(), rtol=1e-6, atol=1e-7)


def test_rows_are_shared_evenly_and_by_few_values() -> None:
    field = some_field()
    sharing = assert_deterministic(lambda: sharing_for(field, 300, seed=3).slots)
    counts = torch.bincount(sharing, minlength=300)
    assert int(counts.max() - counts.min()) <= 1
    memory = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    table = sharing_for(field, 300).expand(memory)
    scales = sharing_for(field, 300).factors.abs()
    assert len((table / scales).abs().mul(1e4).round().unique()) <= 600


def test_the_gradient_of_the_array_is_the_sum_over_its_readers() -> None:
    random = torch.Generator().manual_seed(0)
    factors = torch.randn(9, 1, generator=random, dtype=torch.float64)
    sharing = Sharing(4, torch.randint(4, (9,), generator=random), factors)
    memory = torch.randn(4, 2, generator=random, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sharing.expand, (memory,))
    slopes = torch.randn(9, 2, generator=random, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((sharing.expand(memory) * slopes).sum(), memory)
    torch.testing.assert_close(gradient, sharing.sketch(slopes))


def test_the_fit_is_the_least_squares_one() -> None:
    random = torch.Generator().manual_seed(0)
    sharing = Sharing(3, torch.arange(10) % 3, torch.randn(10, 1, generator=random, dtype=torch.float64))
    rows = torch.randn(10, 2, generator=random, dtype=torch.float64)
    matrix = sharing.expand(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(sharing.fit(rows), torch.linalg.lstsq(matrix, rows).solution)


def test_inner_products_are_kept_on_average_over_the_signs() -> None:
    field = some_field()
    random = torch.Generator().manual_seed(5)
    first, second = (torch.randn(len(field.table), 1, generator=random) for _ in range(2))
    second += 0.5 * first
    products = []
    for seed in range(300):
        drawn = sharing_for(field, 200, seed)
        plain = Sharing(drawn.size, drawn.slots, drawn.factors.sign())
        products.append(float((plain.sketch(first) * plain.sketch(second)).sum()))
    found, wanted = torch.tensor(products), float((first * second).sum())
    assert abs(float(found.mean()) - wanted) < 4 * float(found.std()) / 300**0.5
    assert abs(float(found.mean()) - wanted) < 0.2 * wanted


def test_scales_do_not_change_how_far_rows_move() -> None:
    slots = torch.arange(8) % 4
    gradient = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    moves = [sharing.expand(sharing.fit(gradient)) for scale in (1.0, 1e-3) for sharing in
             [Sharing(4, slots, torch.full((8, 1), scale))]]  # fmt: skip
    torch.testing.assert_close(*moves)


def test_a_shared_field_learns_and_stays_shared() -> None:
    field, capture = some_field(), photographed(8)
    before = field.table.detach().clone()
    start, sharing, size, _ = share(field, capture, 0.25, steps=0, training=QUICK)
    assert_same(start.table.detach(), sharing.expand(sharing.fit(before)))
    smaller, sharing, size, record = share(field, capture, 0.25, steps=25, training=QUICK)
    assert_same(field.table.detach(), before)
    assert record.losses[-1][1] < record.losses[0][1]
    memory = sharing.fit(smaller.table.detach())
    torch.testing.assert_close(sharing.expand(memory), smaller.table.detach(), rtol=1e-4, atol=1e-5)
    assert not smaller.table.detach().equal(start.table.detach())
    assert field.bytes - size == pytest.approx(0.75 * before.numel() * 4, rel=0.01)


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="keep must be"):
        share(some_field(), photographed(4), 1.5, steps=0)
    with pytest.raises(ValueError, match="at least 1"):
        sharing_for(some_field(), 0)
