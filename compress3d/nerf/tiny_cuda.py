"""The hash grid through tiny-cuda-nn's kernels (https://github.com/NVlabs/tiny-cuda-nn, `encodings/grid.h`).

A grid of that library has its own levels: scales are powers of one number, counted in float32, and a dense level has
a vertex a side less than here, so that its far side reads the near one. But where a grid of one level is read is ours
to say: what it is given as x lies at s x + 0.5 of its level, s = base_resolution - 1. So each level here is a grid of
one level there, which is given (along - 0.5) / s, where `along` is the place on the level that `encode_reference`
finds:

- hashed levels have s = 2^15: a power of two, so that `along` comes back exactly, and a cube of vertices that fits no
  table, so that all is hashed, by the same primes and modulo;
- dense levels have s = resolution, so that rows are counted by the same vertices a side. `along` comes back to one
  rounding of float32: features differ by 1.2e-7 of it times how much neighbouring rows differ.

Gradients of table rows are summed by atomic additions: their last bits differ from run to run.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn.functional import pad

from compress3d.nerf.levels import Level
from compress3d.nerf.libraries import library

FEATURES = (1, 2, 4, 8)
"""Of a row, that there are kernels for."""

_HASHED_SCALE = 1 << 15
"""Twice as much would overflow the 32 bits in which older versions find out whether a level is hashed."""


def serves(positions: Float[Tensor, "N 3"], table: Float[Tensor, "rows F"], levels: tuple[Level, ...]) -> bool:
    """Whether `encode_tiny_cuda` can be given these: on CUDA, float32, and no level beyond its kernels."""
    return (
        table.is_cuda
        and table.dtype == torch.float32
        and table.shape[1] in FEATURES
        and len(positions) > 0
        and all(level.scale <= _HASHED_SCALE for level in levels)
        and library("tinycudann") is not None
    )


def encode_tiny_cuda(
    positions: Float[Tensor, "N 3"],
    table: Float[Tensor, "rows F"],
    levels: tuple[Level, ...],
    slots: Int32[Tensor, " all_rows"] | None = None,
) -> Float[Tensor, "N LF"]:
    """`compress3d.nerf.hashgrid.encode` of one position or more, differentiable once in table and positions.

    A table of which rows were cut is filled up with zeros, each time.
    """
    if slots is not None:
        # The row behind the last one is of zeros.
        rows = torch.where(slots < 0, len(table), slots).long()
        table = pad(table, (0, 0, 0, 1)).index_select(0, rows)
    parts = []
    for level, stored in zip(levels, table.split([level.rows for level in levels]), strict=True):
        along = positions.clamp(0, 1) * level.scale + 0.5
        scale = _HASHED_SCALE if level.hashed else level.resolution
        grid = _grid(scale, level.rows if level.hashed else None, table.shape[1])
        # The library stores rows of levels in multiples of eight.
        params = pad(stored, (0, 0, 0, -level.rows % 8)).flatten()
        parts.append(torch.func.functional_call(grid, {"params": params}, ((along - 0.5) / scale,)))
    return torch.cat(parts, dim=1)


@lru_cache(maxsize=64)
def _grid(scale: int, hashed_rows: int | None, features: int) -> Any:
    """A grid of one level of this scale; dense where there are no `hashed_rows`."""
    tinycudann = library("tinycudann")
    assert tinycudann is not None
    kind = (
        {"type": "Dense"}
        if hashed_rows is None
        else {"type": "Hash", "log2_hashmap_size": hashed_rows.bit_length() - 1}
    )
    grid = tinycudann.Encoding(
        3,
        {
            "otype": "Grid",
            "n_levels": 1,
            "n_features_per_level": features,
            "base_resolution": scale + 1,
            "per_level_scale": 2.0,
            "interpolation": "Linear",
            **kind,
        },
        dtype=torch.float32,
    )
    # Its own table is never read: each call brings one.
    grid.params = torch.nn.Parameter(grid.params.detach().new_empty(0))
    return grid
