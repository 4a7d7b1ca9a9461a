"""Tables of few bits, and the packed file: the same pictures again, and what is damaged or hostile refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compress3d.nerf.field import Field
from compress3d.nerf.files import load_field, save_field
from compress3d.nerf.render import render
from compress3d.nerf.rounding import TableRounding, rounding_for
from compress3d.nerf.units import LEVELS, ROWS
from tests.compress3d.nerf.fields import some_field
from tests.compress3d.splats.photographed import around
from tests.contracts import assert_same


def rounded_field(bits: int | tuple[int, ...] = 6, cut: bool = True) -> tuple[Field, TableRounding]:
    field = some_field()
    if cut:
        keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in field.groups()}
        keep[ROWS] = torch.arange(len(field.table)) % 3 != 1
        field = field.cut(keep)
    rounding = rounding_for(field, bits)
    with torch.no_grad():
        field.table.copy_(rounding(field.table))
    return field, rounding


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (6, 0.06), (4, 0.2)])
def test_an_entry_is_off_by_little(bits: int, most: float) -> None:
    field = some_field()
    rounding = rounding_for(field, bits)
    table = field.table.detach()
    rounded = rounding(table)
    error = (rounded - table).square().mean().sqrt()
    assert 0 < float(error) < most
    assert_same(rounding(rounded), rounded)
    for level in rounded.split(rounding.counts):
        assert len(level.unique()) <= 2**bits


def test_a_narrower_range_has_less_error_where_entries_have_long_tails() -> None:
    field = some_field()
    with torch.no_grad():
        field.table[::97] *= 8
    rounding, table = rounding_for(field, 4), field.table.detach()
    counts = torch.tensor(rounding.counts)
    lows = torch.stack([part.min() for part in table.split(rounding.counts)])
    highs = torch.stack([part.max() for part in table.split(rounding.counts)])
    whole = TableRounding(rounding.counts, rounding.bits, lows, (highs - lows) / 15)
    assert int(counts.sum()) == len(table)
    assert float((rounding(table) - table).square().mean()) < float((whole(table) - table).square().mean())


def test_gradients_go_straight_through() -> None:
    field = some_field()
    table = field.table.detach().requires_grad_()
    slopes = torch.randn(table.shape, generator=torch.Generator().manual_seed(2))
    (rounding_for(field, 4)(table) * slopes).sum().backward()
    assert_same(table.grad, slopes)


def test_a_level_of_one_value_keeps_it() -> None:
    field = some_field()
    with torch.no_grad():
        field.table.fill_(0.7)
    assert_same(rounding_for(field, 4)(field.table.detach()), field.table.detach())


@pytest.mark.parametrize("bits", [(8, 8), 1, 9])
def test_bits_that_do_not_fit_are_refused(bits: Any) -> None:
    with pytest.raises(ValueError, match="bits"):
        rounding_for(some_field(), bits)


@pytest.mark.parametrize(("bits", "cut"), [(8, True), (4, False), ((8, 6, 4, 2), True)])
def test_what_is_packed_renders_the_same_bits(bits: Any, cut: bool, tmp_path: Path) -> None:
    field, rounding = rounded_field(bits, cut)
    plain, packed = tmp_path / "plain.safetensors", tmp_path / "packed.safetensors"
    size = save_field(field, packed, rounding)
    assert size == packed.stat().st_size < save_field(field, plain) / 2
    loaded = load_field(packed)
    assert_same(dict(loaded.state_dict()), dict(load_field(plain).state_dict()))
    assert_same(list(render(loaded, around(1), 0)), list(render(field, around(1), 0)))


def test_a_field_without_rows_is_packed(tmp_path: Path) -> None:
    field = some_field()
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in field.groups()}
    keep |= {ROWS: torch.zeros(len(field.table), dtype=torch.bool), LEVELS: torch.arange(4) > 1}
    empty = field.cut(keep)
    path = tmp_path / "field.safetensors"
    save_field(empty, path, rounding_for(empty, 4))
    assert load_field(path).table.shape == (0, 2)


def test_a_table_that_is_not_rounded_is_refused(tmp_path: Path) -> None:
    field = some_field()
    with pytest.raises(ValueError, match="is not rounded"):
        save_field(field, tmp_path / "field.safetensors", rounding_for(field, 8))
    assert not list(tmp_path.iterdir())


def _frame(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(zstandard.ZstdCompressor().compress(content)), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"bits": [8, 8]}, {}, "each level needs"),
        ({"bits": [8, 8, 8, 40]}, {}, "2 to 8 bits"),
        ({"bits": "8"}, {}, "'bits' must be a list"),
        ({"features": 10**9}, {}, "'features' must be"),
        ({"features": 3}, {}, "'table' must unpack to"),
        ({"cells_a_side": 512}, {}, "'cells' must unpack to 16777216 bytes"),
        ({}, {"table": _frame(bytes(10**8))}, "it says 100000000"),
        ({}, {"rows": _frame(bytes(10**7))}, "'rows' must unpack to"),
        ({}, {"table": torch.zeros(40, dtype=torch.uint8)}, "'table' is no zstd frame"),
        ({}, {"table": torch.zeros(40)}, "'table' must be"),
        ({}, {"table": None}, "no tensor 'table'"),
        ({}, {"steps": None}, "no tensor 'steps'"),
        ({}, {"steps": torch.zeros(4)}, "above 0"),
        ({}, {"lows": torch.full((4,), torch.nan)}, "finite"),
        ({}, {"steps": torch.full((4,), 3e38)}, "not finite"),
    ],
)
def test_damaged_files_are_refused(
    header: dict[str, Any], tensors: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "field.safetensors"
    save_field(*_swapped(path))
    with safe_open(path, framework="pt") as file:
        fields = json.loads(file.metadata()["secateur"])
    kept = {name: tensor for name, tensor in (load_file(path) | tensors).items() if tensor is not None}
    save_file(kept, path, {"secateur": json.dumps(fields | header)})
    with pytest.raises(ValueError, match=message) as error:
        load_field(path)
    assert str(path) in str(error.value)


def _swapped(path: Path) -> tuple[Field, Path, TableRounding]:
    field, rounding = rounded_field()
    return field, path, rounding
