"""Block-sparse layers: what each block of a weight is worth to the layer's output, and what a layer loses by count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
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
