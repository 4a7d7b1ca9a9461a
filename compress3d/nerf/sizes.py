"""What is in a field's file, told by its header alone: no torch, and no tensor is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT_NAME = "secateur neural field"

_LONGEST_HEADER = 1 << 20
_PARTS = {"table": "table", "lows": "table", "steps": "table", "cells": "occupied cells", "rows": "rows that are left"}
"""Tensor -> what it belongs to; the others are the networks'."""


def is_field(path: Path) -> bool:
    """Whether the file at `path` says that it holds a neural field."""
    try:
        said = json.loads(_header(path)["__metadata__"]["secateur"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(said, dict) and said.get("format") == FORMAT_NAME


def bytes_by_part(path: Path) -> dict[str, int]:
    """Bytes of a field's file: its table, the networks, the cells, the rows that are left, and the header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file.
    """
    sizes: dict[str, int] = {}
    for name, tensor in _header(path).items():
        if name != "__metadata__":
            first, last = tensor["data_offsets"]
            part = _PARTS.get(name, "networks")
            sizes[part] = sizes.get(part, 0) + last - first
    return sizes | {"header": path.stat().st_size - sum(sizes.values())}


def _header(path: Path) -> dict[str, Any]:
    """The JSON object that a safetensors file begins with, after eight bytes of its length."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _LONGEST_HEADER:
            raise ValueError(f"{path}: not a safetensors file: its header would have {length} bytes")
        content = file.read(length)
    try:
        header = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: not a safetensors file: its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not a safetensors file: its header is no JSON object")
    return header
