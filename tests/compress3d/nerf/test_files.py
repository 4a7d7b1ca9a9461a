"""The file of a field: the same pictures again, and what is damaged or hostile refused in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress3d.nerf.field import Field
from compress3d.nerf.files import load_field, save_field
from compress3d.nerf.render import render
from compress3d.nerf.units import ROWS
from tests.compress3d.nerf.fields import some_field
from tests.compress3d.splats.photographed import around
from tests.contracts import assert_same


def picture(field: Field) -> Any:
    return list(render(field, around(1), 0))


def cut_field() -> Field:
    field = some_field()
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in field.groups()}
    return field.cut(keep | {ROWS: torch.arange(len(field.table)) % 3 != 1})


@pytest.mark.parametrize("make", [some_field, cut_field])
def test_what_is_read_renders_the_same_bits(make: Any, tmp_path: Path) -> None:
    field = make()
    path = tmp_path / "field.safetensors"
    size = save_field(field, path)
    assert size == path.stat().st_size
    assert field.bytes <= size < field.bytes + 4096
    assert_same(picture(load_field(path)), picture(field))
    first = path.read_bytes()
    save_field(load_field(path), path)
    assert path.read_bytes() == first


def test_a_weight_that_is_not_finite_is_counted_and_refused(tmp_path: Path) -> None:
    field = some_field()
    with torch.no_grad():
        field.table[:3, 0] = torch.nan
    with pytest.raises(ValueError, match=f"'table' holds 3 values of {field.table.numel()} that are not finite"):
        save_field(field, tmp_path / "field.safetensors")
    assert not list(tmp_path.iterdir())


def broken(path: Path, header: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> None:
    """A field's file with other header fields or tensors; None leaves one out."""
    save_field(cut_field(), path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        fields = json.loads(file.metadata()["secateur"])
    kept = {name: tensor for name, tensor in (load_file(path) | tensors).items() if tensor is not None}
    save_file(kept, path, {"secateur": json.dumps(fields | (header or {}))})


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"version": 2}, {}, "version 2"),
        ({"format": "another"}, {}, "not a secateur neural field"),
        ({"box": [0, 0, 0]}, {}, "'box' must be a list"),
        ({"box": [0, 0, 0, -1]}, {}, "box needs"),
        ({"box": [0, 0, 0, "1"]}, {}, "must hold numbers"),
        ({"stride": [0, 0, 1]}, {}, "steps must be"),
        ({"levels": [[7.0, 10**12, True]]}, {}, "level of scale"),
        ({"levels": [[1e300, 512, False]]}, {}, "scale of a level"),
        ({"levels": [["a", 512, True]]}, {}, "a level must be"),
        ({"levels": [[100.0, 1 << 22, True]] * 32}, {}, "'rows' must hold"),
        ({"levels": []}, {}, "'levels' must be a list"),
        ({"cells_a_side": 512}, {}, "'cells' must hold"),
        ({"cells_a_side": 10**9}, {}, "'cells_a_side' must be"),
        ({}, {"table": None}, "no tensor 'table'"),
        ({}, {"rows": None}, "the table must have"),
        ({}, {"table": torch.zeros(5, 2)}, "the table must have"),
        ({}, {"table": torch.zeros(5, 2).double()}, "'table' must be"),
        ({}, {"color.0": torch.full((16, 32), torch.inf)}, "512 values of 512"),
        ({}, {"color.0": torch.zeros(16, 30)}, r"color\.0 takes 30"),
        ({}, {"density.1": None, "density.2": torch.zeros(16, 16)}, "density.1"),
    ],
)
def test_damaged_files_are_refused(
    header: dict[str, Any], tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "field.safetensors"
    broken(path, header, **tensors)
    with pytest.raises(ValueError, match=message) as error:
        load_field(path)
    assert str(path) in str(error.value)


def test_what_is_no_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_field(tmp_path / "none.safetensors")
    path = tmp_path / "field.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"field\.safetensors"):
        load_field(path)
    save_field(some_field(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"field\.safetensors"):
        load_field(path)
