"""Block-sparse layers: what each block of a weight is worth, what a layer loses by count, and the blocks that stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from secateur.distortion import Curve, levels
from secateur.patterns import Blocks
from secateur.solvers.gram import Gram


@dataclass(frozen=True)
class BlockTaylor:
    """0.5 w_B H w_B^T: the second-order Taylor term of zeroing a block B of a layer's weight, alone.

    The general part of LPViT (Xu et al.: Low-Power Semi-structured Pruning for Vision Transformers, arXiv 2407.02068):
    layers of linear weights lose whole blocks, H is the mean of x x^T, and ratios come from a Lagrangian over layers,
    `secateur.distortion.RateDistortion(curves, solver="multiplier")`, with the power of a block as the cost of its
    unit: power is linear in the number of kept blocks. A trained layer's first-order term is taken as 0.

    Args:
        rows: height of a block; divides the weight's rows.
        columns: width of a block; divides the weight's columns.
    """

    rows: int
    columns: int

    @torch.no_grad()
    def score(self, weight: Float[Tensor, "rows d_in"], gram: Gram) -> Float[Tensor, "high wide"]:
        """(row blocks, column blocks) half the mean squared change of the output that each block alone makes.

        Raises:
            ValueError: there are no whole blocks, or the weight does not fit the Gram matrix.
        """
        Blocks(1.0, self.rows, self.columns).span(weight.shape)
        d, wide = weight.shape[1], weight.shape[1] // self.columns
        if gram.mean.shape != (d, d) or not gram.samples:
            raise ValueError(f"the Gram matrix must be of {d} inputs, and hold samples; it has {len(gram.mean)}")
        hessians = gram.mean.reshape(wide, self.columns, wide, self.columns).diagonal(dim1=0, dim2=2).movedim(2, 0)
        parts = weight.to(gram.mean).reshape(-1, wide, self.columns).transpose(0, 1)
        by_row = 0.5 * ((parts @ hessians) * parts).sum(2)
        return by_row.reshape(wide, -1, self.rows).sum(2).T.clamp_min(0)

    def curve(self, scores: Float[Tensor, "high wide"], steps: int = 100) -> Curve:
        """What the layer loses when only its best blocks stay, taking the blocks' losses to add up."""
        ordered = scores.flatten().cpu().double().sort(descending=True).values
        lost = torch.cat([ordered.flip(0).cumsum(0).flip(0), ordered.new_zeros(1)])
        counts = levels(len(ordered), min(steps, len(ordered)))
        return Curve(counts, lost[counts])


@dataclass(frozen=True, eq=False)
class BlockedCSR:
    """A block-sparse matrix as its kept blocks, row of blocks by row of blocks (blocked compressed sparse rows).

    Args:
        values: (kept, rows, columns) the blocks.
        col_indices: (kept,) int64: in which column of blocks each lies; ascending within a row.
        crow_indices: (high + 1,) int64: blocks `crow_indices[i]` to `crow_indices[i + 1]` make up row i of blocks.
        wide: columns of blocks.

    Raises:
        ValueError: the indices do not fit the blocks or one another.
    """

    values: Float[Tensor, "kept rows columns"]
    col_indices: Int64[Tensor, " kept"]
    crow_indices: Int64[Tensor, " starts"]
    wide: int

    def __post_init__(self) -> None:
        starts, columns = self.crow_indices, self.col_indices
        if self.values.ndim != 3 or starts.ndim != 1 or columns.shape != self.values.shape[:1] or not len(starts):
            raise ValueError(
                f"blocks need values (kept, rows, columns) and one column each, got {tuple(self.values.shape)} values, "
                f"{tuple(columns.shape)} columns and {tuple(starts.shape)} starts of rows"
            )
        if int(starts[0]) or int(starts[-1]) != len(columns) or bool((starts.diff() < 0).any()):
            raise ValueError(f"starts of rows must rise from 0 to {len(columns)}, the number of blocks")
        if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < self.wide:
            raise ValueError(f"columns of blocks must lie in [0, {self.wide}), got up to {int(columns.max())}")
        if len(self.places().unique()) < len(columns):
            raise ValueError("a block is there twice")

    def places(self) -> Int64[Tensor, " kept"]:
        """(kept,) where each block lies, counted along the rows of blocks."""
        high = len(self.crow_indices) - 1
        rows = torch.arange(high, device=self.crow_indices.device).repeat_interleave(self.crow_indices.diff())
        return rows * self.wide + self.col_indices

    def kept(self) -> Bool[Tensor, "high wide"]:
        """(row blocks, column blocks): which blocks are held, zeros or not."""
        high = len(self.crow_indices) - 1
        mask = torch.zeros(high * self.wide, dtype=torch.bool, device=self.values.device)
        mask[self.places()] = True
        return mask.view(high, self.wide)


def to_blocked_csr(weight: Float[Tensor, "rows columns"], keep: Bool[Tensor, "high wide"]) -> BlockedCSR:
    """The kept blocks of a weight (LPViT, arXiv 2407.02068), for products that skip the others.

    Unlike `Tensor.to_sparse_bsr`, it goes by the mask: a kept block of zeros is held, a block that goes is not.

    Args:
        weight: a matrix of whole blocks.
        keep: which blocks stay; its shape says how large a block is.

    Raises:
        ValueError: the matrix has no such whole blocks.
    """
    if weight.ndim != 2 or keep.ndim != 2 or keep.dtype != torch.bool or not keep.numel():
        raise ValueError(f"a matrix and a bool mask of its blocks are needed, got {weight.shape} and {keep.shape}")
    high, wide = keep.shape
    if weight.shape[0] % high or weight.shape[1] % wide:
        raise ValueError(f"a matrix of {tuple(weight.shape)} has no {high} x {wide} whole blocks")
    parts = weight.reshape(high, weight.shape[0] // high, wide, -1).transpose(1, 2)
    starts = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.sum(1).cumsum(0)])
    return BlockedCSR(parts[keep], torch.nonzero(keep)[:, 1], starts, wide)


def from_blocked_csr(matrix: BlockedCSR) -> Float[Tensor, "rows columns"]:
    """The dense matrix, zeros where no block is held."""
    high, (_, rows, columns) = len(matrix.crow_indices) - 1, matrix.values.shape
    parts = matrix.values.new_zeros(high * matrix.wide, rows, columns).index_copy(0, matrix.places(), matrix.values)
    return parts.view(high, matrix.wide, rows, columns).transpose(1, 2).reshape(high * rows, matrix.wide * columns)


def block_mask(mask: Bool[Tensor, "rows columns"], rows: int, columns: int) -> Bool[Tensor, "high wide"]:
    """Which blocks of rows x columns a mask of single weights keeps, as `secateur.patterns.Blocks` makes them.

    Raises:
        ValueError: the mask has no whole blocks of that size, or keeps a part of one.
    """
    Blocks(1.0, rows, columns).span(mask.shape)
    parts = mask.reshape(mask.shape[0] // rows, rows, mask.shape[1] // columns, columns)
    kept = parts.all(3).all(1)
    if not torch.equal(kept, parts.any(3).any(1)):
        raise ValueError(f"the mask keeps a part of a block of {rows} x {columns}; it must keep whole blocks")
    return kept
