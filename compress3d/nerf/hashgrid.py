"""Features at positions, interpolated from the tables of a multi-resolution grid: `encode`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress3d.nerf import hashgrid_kernels as kernels
from compress3d.nerf.levels import MOST_FEATURES, PRIMES, Level, first_rows
from compress3d.nerf.tiny_cuda import encode_tiny_cuda, serves

Levels = tuple[Level, ...]

_WORD = (1 << 32) - 1


def encode(
    positions: Float[Tensor, "N 3"],
    table: Float[Tensor, "rows F"],
    levels: Levels,
    slots: Int32[Tensor, " all_rows"] | None = None,
) -> Float[Tensor, "N LF"]:
    """Trilinear features of all levels, one after the other (arXiv 2201.05989, section 3 and figure 3).

    On the CPU by numba kernels, differentiable once in table and positions and equal from run to run. On CUDA by
    tiny-cuda-nn where that serves (`compress3d.nerf.tiny_cuda`); elsewhere by `encode_reference`.

    Args:
        positions: N points, [0, 1]^3; coordinates outside count as on the side of the cube.
        table: the rows of all levels, F features each, float32 or float64.
        levels: L of them, whose tables follow one another in `table`.
        slots: row as the levels count them -> row of `table`, or -1 where there is none any more, which reads as
            zeros; None: all are there.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check(positions, table, levels, slots)
    if positions.device.type != "cpu":
        run = encode_tiny_cuda if serves(positions, table, levels) else encode_reference
        return run(positions, table, levels, slots)
    return _Encode.apply(positions, table, levels, slots)


def encode_reference(
    positions: Float[Tensor, "N 3"],
    table: Float[Tensor, "rows F"],
    levels: Levels,
    slots: Int32[Tensor, " all_rows"] | None = None,
) -> Float[Tensor, "N LF"]:
    """`encode` in plain torch, on any device, differentiable as often as one likes.

    It takes N * 8 * F numbers a level at once.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check(positions, table, levels, slots)
    parts = []
    corners = torch.tensor(list(product((0, 1), repeat=3)), device=positions.device).unbind()
    for level, start in zip(levels, first_rows(levels), strict=False):
        along = positions.clamp(0, 1) * level.scale + 0.5
        cells = along.detach().floor().clamp(max=level.resolution - 1)
        offsets = along - cells
        total: Tensor | None = None
        for shift in corners:
            weights = torch.where(shift == 1, offsets, 1 - offsets).prod(dim=1, keepdim=True)
            rows = start + vertex_rows(cells.long() + shift, level)
            part = weights * _looked_up(table, rows, slots)
            total = part if total is None else total + part
        assert total is not None
        parts.append(total)
    return torch.cat(parts, dim=1)


def vertex_rows(vertices: Int64[Tensor, "N 3"], level: Level) -> Int64[Tensor, " N"]:
    """The row of each vertex (i, j, k) within its level's table: arXiv 2201.05989, equation 4, where it is hashed."""
    i, j, k = vertices.unbind(dim=1)
    if not level.hashed:
        return i + level.side * (j + level.side * k)
    return (i ^ (j * PRIMES[1] & _WORD) ^ (k * PRIMES[2] & _WORD)) & (level.rows - 1)


def _looked_up(table: Tensor, rows: Tensor, slots: Tensor | None) -> Tensor:
    if slots is None:
        return table[rows]
    stored = slots[rows].long()
    if not len(table):
        return table.new_zeros(len(rows), table.shape[1])
    return torch.where(stored[:, None] >= 0, table[stored.clamp_min(0)], 0)


def _check(positions: Tensor, table: Tensor, levels: Sequence[Level], slots: Tensor | None) -> None:
    if positions.ndim != 2 or positions.shape[1] != 3 or positions.dtype != table.dtype:
        raise ValueError(
            f"positions must be (N, 3) {table.dtype} as the table is, got {positions.dtype} {tuple(positions.shape)}"
        )
    if table.ndim != 2 or not 1 <= table.shape[1] <= MOST_FEATURES or not table.is_floating_point():
        raise ValueError(f"the table must be (rows, F) of 1 to {MOST_FEATURES} features, got {tuple(table.shape)}")
    rows = sum(level.rows for level in levels)
    if slots is None and len(table) != rows:
        raise ValueError(f"{len(levels)} levels have {rows} rows, the table has {len(table)}")
    if slots is not None and (tuple(slots.shape) != (rows,) or slots.dtype != torch.int32):
        raise ValueError(f"slots must be int32 ({rows},), got {slots.dtype} {tuple(slots.shape)}")


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, table: Tensor, levels: Levels, slots: Tensor | None) -> Tensor:
        ctx.save_for_backward(positions, table, slots)
        ctx.levels = levels
        width = table.shape[1]
        features = torch.empty(len(positions), len(levels) * width, dtype=table.dtype)
        kernels.interpolate(
            _array(positions), _array(table), *_numbers(levels, table.dtype), _slots(slots), _lanes(width),
            features.numpy(),
        )  # fmt: skip
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        positions, table, slots = ctx.saved_tensors
        points, slope = _array(positions), _array(slopes)
        numbers, left = _numbers(ctx.levels, table.dtype), _slots(slots)
        to_positions = to_table = None
        if ctx.needs_input_grad[0]:
            to_positions = torch.empty_like(positions, memory_format=torch.contiguous_format)
            kernels.position_gradient(points, slope, _array(table), *numbers, left, to_positions.numpy())
        if ctx.needs_input_grad[1]:
            to_table = torch.zeros_like(table, memory_format=torch.contiguous_format)
            order = _order(len(ctx.levels), nb.get_num_threads())
            kernels.scatter(points, slope, *numbers, left, _lanes(table.shape[1]), order, to_table.numpy())
        return to_positions, to_table, None, None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


_ALL_THERE = np.empty(0, np.int32)


def _slots(slots: Tensor | None) -> np.ndarray:
    return _ALL_THERE if slots is None else slots.numpy()


class _Numbers(NamedTuple):
    """Scale, vertices a side, hash mask (0: dense) and first row of each level."""

    scales: np.ndarray
    sides: np.ndarray
    masks: np.ndarray
    starts: np.ndarray


@lru_cache(maxsize=8)
def _numbers(levels: Levels, dtype: torch.dtype) -> _Numbers:
    scales = torch.tensor([level.scale for level in levels], dtype=dtype).numpy()
    sides = np.array([level.side for level in levels], np.uint32)
    masks = np.array([level.rows - 1 if level.hashed else 0 for level in levels], np.uint32)
    return _Numbers(scales, sides, masks, np.array(first_rows(levels)[:-1], np.int64))


@lru_cache(maxsize=8)
def _lanes(width: int) -> tuple[float, ...]:
    return (0.0,) * width


@lru_cache(maxsize=8)
def _order(levels: int, threads: int) -> np.ndarray:
    """Levels so that threads, which take equal runs of them, get fine and coarse ones alike."""
    return np.array(sorted(range(levels), key=lambda level: (level % threads, level)), np.int64)
