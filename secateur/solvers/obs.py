"""Optimal Brain Surgeon: which weights of a row go, and how those that stay make up for them.

A row w of a linear layer has the quadratic loss 0.5 (w' - w) H (w' - w)^T, with H the Gram matrix of the inputs (see
`secateur.solvers.gram`). Here are its exact minimum under a given mask (`refit`), the exact greedy surgeon (`surgeon`,
one weight at a time), and SparseGPT's column sweep (`sweep`), which shares one factor among all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.maths import reject_nan

# How much is put on the diagonal, relative to its mean, when a Cholesky factorisation fails: tried one after another.
_JITTERS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)

# Rows whose inverse Hessians are held at once by the exact surgeon, in elements.
_SURGEON_ELEMENTS = 1 << 24

Choose = Callable[[Float[Tensor, "rows span"], int], Bool[Tensor, "rows span"]]
"""(scores, first column) -> which weights of these columns stay."""


def cholesky(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The lower Cholesky factor; a little is added to the diagonal where rounding has made the matrix indefinite.

    Raises:
        ValueError: it holds NaN or infinities, or is indefinite by more than rounding.
    """
    reject_nan(matrix, "the matrix")
    if bool(torch.isinf(matrix).any()):
        raise ValueError("the matrix holds infinities")
    scale = matrix.diagonal().abs().mean()
    for jitter in _JITTERS:
        shifted = matrix + torch.diag(torch.full_like(matrix.diagonal(), float(jitter * scale))) if jitter else matrix
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not int(failed):
            return factor
    raise ValueError(
        f"the {len(matrix)} x {len(matrix)} matrix is not positive definite, even with {_JITTERS[-1]:g} of its mean "
        "diagonal added: raise the damping"
    )


def inverse_factor(hessian: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The upper triangular U with a positive diagonal and U^T U = H^-1: SparseGPT's factor (arXiv 2301.00774, 3.3).

    From the Cholesky factor of H in reversed order, R R^T = H with R upper, as U = R^-1: the inverse is never formed,
    which float32 would not survive where H is ill-conditioned.

    U[j, j]^2 is the j-th diagonal entry of the inverse of H[j:, j:].
    """
    upper = cholesky(hessian.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(upper, torch.eye(len(upper)).to(upper), upper=True)


def quadratic_loss(change: Float[Tensor, "rows d"], hessian: Float[Tensor, "d d"]) -> float:
    """0.5 tr change H change^T."""
    return 0.5 * float(((change @ hessian) * change).sum())


def removal_losses(weight: Float[Tensor, "rows d"], hessian: Float[Tensor, "d d"]) -> Float[Tensor, "rows d"]:
    """What removing each weight alone costs once the rest of its row has made up for it: w^2 / (2 [H^-1]_jj).

    Hassibi and Stork: Second Order Derivatives for Network Pruning: Optimal Brain Surgeon, 1992, equation 5.
    """
    diagonal = inverse_factor(hessian).square().sum(0)
    return weight.square() / (2 * diagonal)


def refit(
    weight: Float[Tensor, "rows d"], hessian: Float[Tensor, "d d"], keep: Bool[Tensor, "rows d"]
) -> Float[Tensor, "rows d"]:
    """The weights of least quadratic loss among those that are 0 outside `keep`, row by row.

    w'_K = w_K + H_KK^-1 H_KP w_P with K the kept and P the pruned columns of the row. Rows that share a mask share one
    factorisation; a row that keeps everything is left as it is, bit for bit.

    Raises:
        ValueError: shapes do not agree, something holds NaN, or H is not positive definite.
    """
    if keep.shape != weight.shape or hessian.shape != (weight.shape[1],) * 2:
        raise ValueError(
            f"weight {tuple(weight.shape)}, Hessian {tuple(hessian.shape)} and mask {tuple(keep.shape)} do not fit"
        )
    reject_nan(weight, "the weight")
    result = torch.where(keep, weight, 0)
    masks, row_of = torch.unique(keep, dim=0, return_inverse=True)
    for index, mask in enumerate(masks):
        if bool(mask.all()) or not bool(mask.any()):
            continue
        rows = (row_of == index).nonzero()[:, 0]
        pruned = weight[rows][:, ~mask]
        factor = cholesky(hessian[mask][:, mask])
        gain = torch.cholesky_solve(hessian[mask][:, ~mask] @ pruned.T, factor).T
        result[rows[:, None], mask.nonzero()[:, 0]] = weight[rows][:, mask] + gain
    return result


def surgeon(
    weight: Float[Tensor, "rows d"], hessian: Float[Tensor, "d d"], kept: int
) -> tuple[Float[Tensor, "rows d"], Bool[Tensor, "rows d"]]:
    """Remove the cheapest weight of each row, update the row, and again, until `kept` stay in each row.

    The exact greedy surgeon (Hassibi and Stork 1992; Frantar and Alistarh: Optimal Brain Compression, arXiv
    2208.11580, algorithm 1): O(d^3) a row, and d^2 numbers for each of the rows that are worked on at once.

    Returns:
        The weights and the mask.

    Raises:
        ValueError: `kept` is out of range, something holds NaN, or H is not positive definite.
    """
    d = weight.shape[1]
    if not 0 <= kept <= d:
        raise ValueError(f"kept must be between 0 and {d}, got {kept}")
    reject_nan(weight, "the weight")
    factor = inverse_factor(hessian)
    inverse = factor.T @ factor
    parts = [_surgeon(part, inverse, kept) for part in weight.split(max(1, _SURGEON_ELEMENTS // d**2))]
    updated, keep = torch.cat([values for values, _ in parts]), torch.cat([mask for _, mask in parts])
    return torch.where(keep, updated, 0), keep


def _surgeon(weight: Tensor, inverse: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    rows, d = weight.shape
    weight = weight.clone()
    keep = torch.ones_like(weight, dtype=torch.bool)
    inverses = inverse.expand(rows, d, d).clone()
    every = torch.arange(rows, device=weight.device)
    for _ in range(d - kept):
        diagonal = inverses.diagonal(dim1=1, dim2=2)
        losses = torch.where(keep, weight.square() / diagonal, torch.inf)
        goes = losses.argmin(1)
        pivot = diagonal[every, goes].clone()
        column = inverses[every, goes].clone()
        weight -= (weight[every, goes] / pivot)[:, None] * column
        inverses -= column[:, :, None] * (column / pivot[:, None])[:, None, :]
        keep[every, goes] = False
        # Rounding leaves crumbs where the algebra has zeros, and the pivot of what is gone must not be 0.
        weight[every, goes] = 0
        inverses[every, goes, :] = 0
        inverses[every, :, goes] = 0
        inverses[every, goes, goes] = 1
    return weight, keep


def sweep(
    weight: Float[Tensor, "rows d"],
    factor: Float[Tensor, "d d"],
    choose: Choose,
    span: int,
    block: int = 128,
    together: int = 1,
) -> tuple[Float[Tensor, "rows d"], Bool[Tensor, "rows d"], float]:
    """SparseGPT: columns from left to right, each one's error made up for by the columns to the right of it.

    Frantar and Alistarh, arXiv 2301.00774, algorithm 1. Every `span` columns `choose` is asked which weights stay, with
    the scores w^2 / U_jj^2 (twice the loss that removal costs) of the weights as updated so far. Columns further right
    than a block are updated once a block. All rows share U, so time is O(d^3 + rows d^2) and memory O(d^2 + rows d).

    Args:
        weight: what is pruned; it is not changed.
        factor: U of `inverse_factor`.
        choose: which weights of the next `span` columns stay.
        span: how many columns are decided at a time; the last time fewer may be left.
        block: columns between updates of the rest, rounded up to a multiple of `span`.
        together: neighbouring columns of a row that stay or go together; `span` is a multiple of it. The scores of such
            a run are then the squared errors of removing all of it, w U^-1 on its columns, whose sum is twice the loss.

    Returns:
        The weights, the mask, and the loss 0.5 tr (W' - W) H (W' - W)^T, which is half the sum of the squared errors.
    """
    reject_nan(weight, "the weight")
    weight, keep = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    d = weight.shape[1]
    block = -(-max(block, span) // span) * span
    loss = 0.0
    for start in range(0, d, block):
        stop = min(start + block, d)
        errors = torch.zeros_like(weight[:, start:stop])
        for column in range(start, stop):
            if (column - start) % span == 0:
                part = slice(column, min(column + span, stop))
                keep[:, part] = choose(_errors(weight[:, part], factor[part, part], together).square(), column)
            removed = torch.where(keep[:, column], 0, weight[:, column])
            error = removed / factor[column, column]
            weight[:, column:stop] -= error[:, None] * factor[column, column:stop]
            weight[:, column] = torch.where(keep[:, column], weight[:, column], 0)
            errors[:, column - start] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
        loss += 0.5 * float(errors.square().sum())
    return weight, keep, loss


def _errors(weight: Tensor, factor: Tensor, together: int) -> Tensor:
    if together == 1:
        return weight / factor.diagonal()
    runs = [slice(first, first + together) for first in range(0, len(factor), together)]
    return torch.cat(
        [torch.linalg.solve_triangular(factor[run, run], weight[:, run], upper=True, left=False) for run in runs], 1
    )
