"""What the output of a layer loses as its blocks go one after another, exactly: mixed terms of what goes included."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from secateur.distortion import Curve, levels
from secateur.maths import order_by_score
from secateur.patterns import Blocks
from secateur.solvers.gram import Gram


@torch.no_grad()
def removal_losses(
    weight: Float[Tensor, "rows d_in"], gram: Gram, order: Int64[Tensor, " blocks"], rows: int, columns: int
) -> Float[Tensor, " counts"]:
    """0.5 tr D H D^T with D the blocks that are gone, after none, one, two ... all of them, in the order given.

    LPViT's second-order distortion of a layer (Xu et al., arXiv 2407.02068), with H the mean of x x^T. Rows of blocks
    share no term, so all of them go forward together, a block each; the whole costs as much as one product W H.

    Args:
        weight: a matrix of whole blocks.
        gram: of the layer's inputs.
        order: blocks, counted along the rows of blocks, that which goes first in front.
        rows: height of a block.
        columns: width of a block.

    Returns:
        (blocks + 1,) float64.

    Raises:
        ValueError: there are no whole blocks, the weight does not fit the Gram matrix, or the order misses a block.
    """
    Blocks(1.0, rows, columns).span(weight.shape)
    d, high, wide = weight.shape[1], weight.shape[0] // rows, weight.shape[1] // columns
    if gram.mean.shape != (d, d) or not gram.samples:
        raise ValueError(f"the Gram matrix must be of {d} inputs, and hold samples; it has {len(gram.mean)}")
    if not torch.equal(order.cpu().sort().values, torch.arange(high * wide)):
        raise ValueError(f"the order must hold each of {high * wide} blocks once")
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    turns = rank.view(high, wide).argsort(1).to(weight.device)
    parts = weight.to(gram.mean).reshape(high, rows, wide, columns).transpose(1, 2)
    hessian = gram.mean.reshape(wide, columns, d)
    every = torch.arange(high, device=weight.device)
    seen = gram.mean.new_zeros(high, wide, rows, columns)
    lost = gram.mean.new_zeros(high, wide)
    for turn in turns.T:
        block = parts[every, turn]
        change = (block @ hessian[turn]).view(high, rows, wide, columns).transpose(1, 2)
        lost[every, turn] = ((seen[every, turn] + 0.5 * change[every, turn]) * block).sum((1, 2))
        seen += change
    return torch.cat([torch.zeros(1), lost.flatten().cpu()[order.cpu()]]).double().cumsum(0).clamp_min(0)


def removal_curve(
    weight: Float[Tensor, "rows d_in"],
    gram: Gram,
    scores: Float[Tensor, "high wide"],
    steps: int = 100,
) -> Curve:
    """What the layer loses when only its best blocks stay, on the grid of counts that `steps` makes.

    Raises:
        ValueError: as `removal_losses`.
    """
    high, wide = scores.shape
    order = order_by_score(scores.flatten()).flip(0)
    losses = removal_losses(weight, gram, order, weight.shape[0] // high, weight.shape[1] // wide).flip(0)
    counts = levels(len(order), min(steps, len(order)))
    return Curve(counts, losses[counts])
