"""A field in one file: safetensors with a JSON header, which renders the same pictures again, bit for bit."""

from __future__ import annotations

import os
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from compress3d.nerf.field import Field
from compress3d.nerf.levels import Level
from compress3d.nerf.march import Stride
from compress3d.nerf.occupancy import RESOLUTIONS, Occupancy, pack_bits, unpack_bits
from compress3d.nerf.packing import pack, unpack
from compress3d.nerf.rays import Box
from compress3d.nerf.rounding import TableRounding
from compress3d.nerf.sizes import FORMAT_NAME
from compress3d.nerf.units import slots_of
from secateur.tensor_files import TensorFormat

FORMAT = TensorFormat(FORMAT_NAME, 1)

_MOST_LEVELS, _MOST_LAYERS, _MOST_NEURONS = 32, 9, 1024


def save_field(field: Field, path: str | os.PathLike[str], rounding: TableRounding | None = None) -> int:
    """Write a field in the place of `path`; returns the bytes.

    Weights are stored as they are, cells and the rows that were cut as a bit each; with a rounding the table has few
    bits, and zstd packs it.

    Args:
        field: to be written.
        path: of the file.
        rounding: of the table, which must already be rounded by it; None: 32 bits an entry.

    Raises:
        ValueError: a weight is not finite, or the table is not rounded.
    """
    tensors: dict[str, Tensor] = {"table": field.table, "cells": field.occupancy.bits}
    for name, weights in zip(("density", "color"), field.weights(), strict=True):
        tensors |= {f"{name}.{index}": weight for index, weight in enumerate(weights)}
    if field.slots is not None:
        stays = field.slots >= 0
        tensors["rows"] = pack_bits(torch.nn.functional.pad(stays, (0, -len(stays) % 8)))
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _reject_not_finite(plain)
    fields = {
        "box": [*field.box.low, field.box.side],
        "stride": list(astuple(field.stride)),
        "levels": [list(astuple(level)) for level in field.levels],
        "cells_a_side": field.occupancy.resolution,
    }
    if rounding is not None:
        plain, packing = pack(plain, rounding)
        fields |= packing
    return FORMAT.save(path, plain, fields)


def load_field(path: str | os.PathLike[str]) -> Field:
    """Read a field, packed or not. Nothing is allocated that the file does not hold, but for four bytes a bit of rows,
    and what a packed file unpacks to: not more than its levels have room for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no field, or damaged; names the file and what is wrong.
    """
    return FORMAT.load(path, _check, _restored)


def _check(header: dict[str, Any]) -> None:
    for name, least, most in (("box", 4, 4), ("stride", 3, 3), ("levels", 1, _MOST_LEVELS)):
        value = header.get(name)
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise ValueError(f"header field {name!r} must be a list of {least} to {most}, got {str(value)[:80]}")
    for value in (*header["box"], *header["stride"]):
        if not _is_number(value):
            raise ValueError(f"header fields 'box' and 'stride' must hold numbers, got {str(value)[:80]}")
    for level in header["levels"]:
        if not (
            isinstance(level, list)
            and len(level) == 3
            and _is_number(level[0])
            and type(level[1]) is int
            and type(level[2]) is bool
        ):
            raise ValueError(f"a level must be [scale, rows, hashed], got {str(level)[:80]}")
    side = header.get("cells_a_side")
    if type(side) is not int or not RESOLUTIONS[0] <= side <= RESOLUTIONS[1] or side % 8:
        raise ValueError(f"header field 'cells_a_side' must be a multiple of 8 within {RESOLUTIONS}, got {side!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _restored(header: dict[str, Any], tensors: dict[str, Tensor]) -> Field:
    levels = tuple(Level(float(scale), rows, hashed) for scale, rows, hashed in header["levels"])
    x, y, z, side = (float(value) for value in header["box"])
    step, cone, longest = (float(value) for value in header["stride"])
    if "bits" in header:
        tensors = unpack(tensors, header, [level.rows for level in levels])
    _check_tensors(header, tensors, sum(level.rows for level in levels))
    occupancy = Occupancy(header["cells_a_side"])
    occupancy.bits.copy_(tensors["cells"])
    occupancy.possible.copy_(tensors["cells"])
    slots = None
    if "rows" in tensors:
        slots = slots_of(unpack_bits(tensors["rows"])[: sum(level.rows for level in levels)])
    return Field(
        Box((x, y, z), side),
        Stride(step, cone, longest),
        levels,
        tensors["table"],
        _network("density", tensors),
        _network("color", tensors),
        occupancy,
        slots,
    )


def _check_tensors(header: dict[str, Any], tensors: dict[str, Tensor], rows: int) -> None:
    for name in ("table", "cells", "density.0", "color.0"):
        if name not in tensors:
            raise ValueError(f"there is no tensor {name!r}")
    for name, tensor in tensors.items():
        wanted = torch.uint8 if name in ("cells", "rows") else torch.float32
        dims = 1 if wanted is torch.uint8 else 2
        if tensor.dtype != wanted or tensor.ndim != dims or max(tensor.shape[1:], default=0) > _MOST_NEURONS:
            raise ValueError(
                f"{name!r} must be {wanted} of {dims} dimensions, got {tensor.dtype} {tuple(tensor.shape)}"
            )
    _reject_not_finite(tensors)
    if len(tensors["cells"]) != header["cells_a_side"] ** 3 // 8:
        raise ValueError(f"'cells' must hold {header['cells_a_side'] ** 3} bits, it has {len(tensors['cells'])} bytes")
    stored = rows
    if "rows" in tensors:
        if len(tensors["rows"]) != (rows + 7) // 8:
            raise ValueError(f"'rows' must hold {rows} bits, it has {len(tensors['rows'])} bytes")
        stored = int(unpack_bits(tensors["rows"])[:rows].sum())
    if len(tensors["table"]) != stored:
        raise ValueError(f"the table must have {stored} rows, it has {len(tensors['table'])}")


def _network(name: str, tensors: dict[str, Tensor]) -> list[Tensor]:
    count = sum(1 for one in tensors if one.startswith(f"{name}."))
    if count > _MOST_LAYERS:
        raise ValueError(f"network {name!r} has {count} layers, more than {_MOST_LAYERS}")
    return [tensors[f"{name}.{index}"] for index in range(count)]


def _reject_not_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        wrong = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if wrong:
            raise ValueError(f"{name!r} holds {wrong} values of {tensor.numel()} that are not finite")
