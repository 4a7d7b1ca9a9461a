"""The idx format of the MNIST family (Y. LeCun, http://yann.lecun.com/exdb/mnist): big-endian sizes, then bytes."""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

UNSIGNED_BYTES = 0x08
DEFLATED = 1032
"""Bytes that one byte of gzip holds at the most (RFC 1951: 258 from two bits)."""


def read_idx(path: Path) -> UInt8[Tensor, "*shape"]:
    """The uint8 tensor that an idx file holds; `.gz` is unpacked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not idx, holds something else than bytes, or has fewer or more than its header says.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
            if zeros or kind != UNSIGNED_BYTES or not dimensions:
                raise ValueError(f"{path}: no idx file of unsigned bytes; it starts with {zeros:04x}{kind:02x}")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            most = path.stat().st_size * (DEFLATED if path.suffix == ".gz" else 1)
            if prod(shape) > most:
                raise ValueError(f"{path}: the header tells of {prod(shape):,} bytes, the file holds {most:,} at most")
            content = file.read(prod(shape) + 1)
    except (struct.error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the file is cut short or damaged ({error})") from error
    if len(content) != prod(shape):
        held = "more" if len(content) > prod(shape) else f"{len(content):,}"
        raise ValueError(f"{path}: the header tells of {prod(shape):,} bytes, the file holds {held}")
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).reshape(shape)
