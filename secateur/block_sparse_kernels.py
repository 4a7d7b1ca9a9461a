"""The kernels of block-sparse products on the CPU, in float32: tiles of registers that take outer products in.

A tile is `TILE_ROWS` rows of one or two vectors of `LANES` numbers. It is written in LLVM's own vectors, because loops
of single numbers, which numba would have to vectorise, keep their sums in memory and run at a third of the speed.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import binding, ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = os.environ.get("NUMBA_CPU_FEATURES") or binding.get_host_cpu_features().flatten()

LANES = 16 if "+avx512f" in _FEATURES else 8
"""Numbers in a vector register: heights and widths of blocks are multiples of it."""
TILE_ROWS = 8 if LANES == 16 else 4
"""Rows of a tile, so that two vectors of sums a row fit the registers."""

# Rows of the input that are multiplied by one row of blocks after another, while they are in the cache.
_CHUNK = 96


def _tile(vectors: int) -> Any:
    """A function out[i, :] += sum over s of left[i, s] * right[s, :], for the rows of a tile.

    Matrices are given by their array, the position of their first element in it, and the distance from one row (and
    step s) to the next, in elements. The element next to one of `right` or `out` lies behind it.
    """
    vector = ir.VectorType(ir.FloatType(), LANES)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right, out = (
            context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 4, 7)
        )
        left_at, left_row, left_step = arguments[1:4]
        right_at, right_step = arguments[5:7]
        out_at, out_row, steps = arguments[8:]

        def offset(start: Any, stride: Any, count: int) -> Any:
            return builder.add(start, builder.mul(stride, stride.type(count)))

        def place(array: Any, at: Any, column: int) -> Any:
            return builder.bitcast(builder.gep(array, [builder.add(at, at.type(column))]), vector.as_pointer())

        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        columns = [vector_index * LANES for vector_index in range(vectors)]
        places = [[place(out, offset(out_at, out_row, row), column) for column in columns] for row in range(TILE_ROWS)]
        sums = [[cgutils.alloca_once_value(builder, builder.load(at, align=4)) for at in row] for row in places]
        undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        with cgutils.for_range(builder, steps) as loop:
            left_now = builder.add(left_at, builder.mul(loop.index, left_step))
            right_now = builder.add(right_at, builder.mul(loop.index, right_step))
            factors = [builder.load(place(right, right_now, column), align=4) for column in columns]
            for row in range(TILE_ROWS):
                number = builder.load(builder.gep(left, [offset(left_now, left_row, row)]))
                same = builder.insert_element(undefined, number, first)
                same = builder.shuffle_vector(same, undefined, everywhere)
                for held, factor in zip(sums[row], factors, strict=True):
                    builder.store(builder.call(fused, [same, factor, builder.load(held)]), held)
        for held_row, place_row in zip(sums, places, strict=True):
            for held, at in zip(held_row, place_row, strict=True):
                builder.store(builder.load(held), at, align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, left, left_at, left_row, left_step, right, right_at, right_step, out, out_at, out_row, steps):
        index = types.intp
        return types.void(left, index, index, index, right, index, index, out, index, index, index), emit

    return tile


_narrow, _wide = _tile(1), _tile(2)


@njit(cache=True, error_model="numpy")
def _add_row_of_blocks(x, at, blocks, columns, first, last, y, start) -> None:
    """Add the blocks `first` to `last` times TILE_ROWS rows of x, of which `at` is the first, to y from `start` on."""
    width, height = blocks.shape[1:]
    d_in, d_out = x.shape[1], y.shape[1]
    lane = 0
    while lane < height:
        out_at = at * d_out + start + lane
        for block in range(first, last):
            x_at, block_at = at * d_in + columns[block] * width, block * width * height + lane
            if height - lane >= 2 * LANES:
                _wide(x, x_at, d_in, 1, blocks, block_at, height, y, out_at, d_out, width)
            else:
                _narrow(x, x_at, d_in, 1, blocks, block_at, height, y, out_at, d_out, width)
        lane += 2 * LANES if height - lane >= 2 * LANES else LANES


@njit(parallel=True, cache=True, error_model="numpy")
def multiply(x, blocks, columns, starts, bias, y) -> None:
    """y = x W^T + bias, where blocks[b] is the transpose of a block of W.

    Args:
        x: (n, d_in) float32, C order, n >= TILE_ROWS.
        blocks: (kept, width, height) float32, C order; height is a multiple of LANES.
        columns: (kept,) int64 the column of blocks that each lies in.
        starts: (high + 1,) int64 where the blocks of each row of blocks begin.
        bias: (d_out,) float32.
        y: (n, d_out) float32, C order; what it holds is overwritten.
    """
    n, height, high = len(x), blocks.shape[2], len(starts) - 1
    # The last chunk takes the rest, so that each chunk has whole tiles or more.
    chunks = max(1, n // _CHUNK)
    for task in prange(chunks * high):
        chunk, row = task // high, task % high
        top, bottom = chunk * _CHUNK, n if chunk == chunks - 1 else (chunk + 1) * _CHUNK
        start, first, last = row * height, starts[row], starts[row + 1]
        y[top:bottom, start : start + height] = bias[start : start + height]
        at = top
        while at + TILE_ROWS <= bottom:
            _add_row_of_blocks(x, at, blocks, columns, first, last, y, start)
            at += TILE_ROWS
        if at < bottom:
            # A last tile reaches back over rows that are done: these are begun anew.
            at = bottom - TILE_ROWS
            y[at:bottom, start : start + height] = bias[start : start + height]
            _add_row_of_blocks(x, at, blocks, columns, first, last, y, start)


@njit(parallel=True, cache=True, error_model="numpy")
def block_gradients(x, gradient, rows, columns, out) -> None:
    """out[b] = x[:, columns of block b]^T gradient[:, rows of block b]: what `multiply` owes its blocks.

    Args:
        x: (n, d_in) float32, C order.
        gradient: (n, d_out) float32, C order, of the loss in y.
        rows: (kept,) int64 the row of blocks that each lies in.
        columns: (kept,) int64.
        out: (kept, width, height) float32, C order, zeros; both are multiples of LANES.
    """
    n, d_in, d_out = len(x), x.shape[1], gradient.shape[1]
    width, height = out.shape[1:]
    for block in prange(len(out)):
        for top in range(0, n, _CHUNK):
            steps = min(_CHUNK, n - top)
            for inner in range(0, width, TILE_ROWS):
                x_at = top * d_in + columns[block] * width + inner
                for lane in range(0, height, LANES):
                    right_at = top * d_out + rows[block] * height + lane
                    out_at = (block * width + inner) * height + lane
                    _narrow(x, x_at, 1, d_in, gradient, right_at, d_out, out, out_at, height, steps)
