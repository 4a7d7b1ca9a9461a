"""The tensors of a field's file, packed: table entries as whole numbers of few bits, and zstd over all that is large.

Whole numbers have a byte each, level by level and feature by feature within it: zstd's Huffman stage brings them down
to their entropy, whatever their bits. Offsets and steps of the levels, and the networks, stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import zstandard
from jaxtyping import UInt8
from torch import Tensor

from compress3d.nerf.levels import MOST_FEATURES
from compress3d.nerf.occupancy import unpack_bits
from compress3d.nerf.rounding import TableRounding

_LEVEL = 19
PACKED = ("table", "cells", "rows")


def pack(tensors: dict[str, Tensor], rounding: TableRounding) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header fields of a packed file.

    Args:
        tensors: of the file that is not packed: "table", "cells", where rows were cut "rows", and the networks.
        rounding: of the table, which it must leave as it is.

    Raises:
        ValueError: the table is not what the rounding makes of it.
    """
    codes = rounding.codes(tensors["table"])
    changed = int((rounding.values(codes) != tensors["table"]).sum())
    if changed:
        raise ValueError(f"the table is not rounded: {changed} entries of {codes.numel()} would change")
    planes = [part.T.flatten() for part in codes.split(rounding.counts)]
    packed = dict(tensors) | {"table": torch.cat(planes), "lows": rounding.lows, "steps": rounding.steps}
    for name in PACKED:
        if name in packed:
            packed[name] = _zipped(packed[name])
    return packed, {"bits": list(rounding.bits), "features": codes.shape[1]}


def unpack(tensors: dict[str, Tensor], header: dict[str, Any], level_rows: Sequence[int]) -> dict[str, Tensor]:
    """The reverse of `pack`; nothing is unpacked that is not just as large as the header's counts say.

    Args:
        tensors: as they were read, of a safetensors file.
        header: its fields; "bits", "features" and "cells_a_side" are looked at.
        level_rows: rows of each level before any was cut.

    Raises:
        ValueError: something does not fit.
    """
    bits, features = header.get("bits"), header.get("features")
    if not isinstance(bits, list) or any(type(one) is not int for one in bits):
        raise ValueError(f"header field 'bits' must be a list of whole numbers, got {str(bits)[:80]}")
    if type(features) is not int or not 1 <= features <= MOST_FEATURES:
        raise ValueError(f"header field 'features' must be 1 to {MOST_FEATURES}, got {str(features)[:80]}")
    _check_packed(tensors)
    rows = sum(level_rows)
    plain = {name: tensor for name, tensor in tensors.items() if name not in ("lows", "steps")}
    plain["cells"] = _unzipped("cells", tensors, header["cells_a_side"] ** 3 // 8)
    counts = list(level_rows)
    if "rows" in tensors:
        plain["rows"] = _unzipped("rows", tensors, (rows + 7) // 8)
        counts = [int(part.sum()) for part in unpack_bits(plain["rows"])[:rows].split(list(level_rows))]
    rounding = TableRounding(tuple(counts), tuple(bits), tensors["lows"], tensors["steps"])
    codes = _unzipped("table", tensors, sum(counts) * features)
    planes = codes.split([count * features for count in counts])
    table = torch.cat([plane.reshape(features, -1).T if len(plane) else plane.reshape(0, features) for plane in planes])
    plain["table"] = rounding.values(table).contiguous()
    return plain


def _check_packed(tensors: dict[str, Tensor]) -> None:
    wanted = {"table": torch.uint8, "cells": torch.uint8, "lows": torch.float32, "steps": torch.float32}
    if "rows" in tensors:
        wanted["rows"] = torch.uint8
    for name, dtype in wanted.items():
        if name not in tensors:
            raise ValueError(f"there is no tensor {name!r}")
        if tensors[name].dtype != dtype or tensors[name].ndim != 1:
            raise ValueError(f"{name!r} must be {dtype} of 1 dimension, got {tensors[name].dtype}")


def _zipped(content: UInt8[Tensor, " n"]) -> UInt8[Tensor, " m"]:
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(content.numpy().tobytes())
    return torch.from_numpy(np.frombuffer(packed, np.uint8).copy())


def _unzipped(name: str, tensors: dict[str, Tensor], size: int) -> UInt8[Tensor, " size"]:
    """The content of one zstd frame that must hold `size` bytes: it says so itself before anything is allocated."""
    packed = tensors[name].numpy().tobytes()
    try:
        says = zstandard.frame_content_size(packed)
        if says != size:
            raise ValueError(f"{name!r} must unpack to {size} bytes, it says {says}")
        content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=max(size, 1)) if size else b""
    except zstandard.ZstdError as error:
        raise ValueError(f"{name!r} is no zstd frame: {error}") from error
    if len(content) != size:
        raise ValueError(f"{name!r} must unpack to {size} bytes, it has {len(content)}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if size else torch.zeros(0, dtype=torch.uint8)
