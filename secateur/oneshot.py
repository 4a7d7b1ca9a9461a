"""Pruning of one weight matrix, once, from what the layer sees: SparseGPT, Wanda, CHITA.

`SparseGPT` and `LayerWanda` take a weight (rows, d_in) and the Gram matrix of the layer's inputs, which
`secateur.solvers.gram.input_grams` collects; `Chita` takes the weights of any number of layers as one vector, and
gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.derivatives import loss_gradients
from secateur.importance.objective import Objective, differentiable
from secateur.patterns import Pattern, Unstructured
from secateur.solvers.gram import Gram
from secateur.solvers.iht import HardThresholding, LeastSquares
from secateur.solvers.obs import inverse_factor, quadratic_loss, refit, sweep
from secateur.units import Prunable


@dataclass(frozen=True, eq=False)
class Pruned:
    """What came of a weight.

    Args:
        weight: shaped and typed like the weight that was given; 0 outside the mask.
        keep: which entries stay.
        loss: the rise of the quadratic that was minimised; for a layer, half the mean squared change of its output
            (with the damping).
    """

    weight: Tensor
    keep: Tensor
    loss: float


@dataclass(frozen=True)
class SparseGPT:
    """Mask and weights of a layer in one sweep over its columns (Frantar and Alistarh, arXiv 2301.00774).

    Columns go from left to right; of each window those weights go whose w^2 / U_jj^2 is least, with U^T U = H^-1, and
    the columns to the right make up for them: w -= (w_j / U_jj) U_j (algorithm 1). H is the mean of x x^T, damped; the
    paper's factor 2 cancels. Unlike the released code, weights of inputs that are always 0 are not removed first: the
    damping makes them cheap, and the budget stays exact.

    Args:
        pattern: which weights may stay together.
        damp: share of the mean diagonal that is added to the diagonal, 0.01 as in the released code.
        window: columns whose mask is chosen together where the pattern leaves it open, 128 as in the paper; also the
            number of columns between updates of the rest.
    """

    pattern: Pattern
    damp: float = 0.01
    window: int = 128

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    @torch.no_grad()
    def prune(self, weight: Float[Tensor, "rows d_in"], gram: Gram) -> Pruned:
        """The weight, pruned.

        Raises:
            ValueError: the shapes do not fit the Gram matrix or the pattern, or something holds NaN.
        """
        hessian = _hessian(weight, gram, self.damp)
        span = self.pattern.span(weight.shape, self.window)
        factor = inverse_factor(hessian)
        swept, keep, loss = sweep(
            weight.to(hessian), factor, self.pattern.mask, span, self.window, self.pattern.together
        )
        return Pruned(swept.to(weight.dtype), keep, loss)


@dataclass(frozen=True)
class LayerWanda:
    """Keep the weights of largest |w| |x|, with |x| the root mean square of their input (Sun et al., arXiv 2306.11695).

    It prunes one layer from its Gram matrix; `secateur.importance.Wanda` scores the units of a whole network. With a
    refit, the weights that stay are solved again by least squares (`secateur.recovery.refit`), which Wanda itself does
    not do.

    Args:
        pattern: `PerRow` compares within each output, as the paper has it.
        refit: solve the kept weights again.
        damp: share of the mean diagonal that is added to the diagonal for the refit and the loss.
    """

    pattern: Pattern
    refit: bool = False
    damp: float = 0.01

    @torch.no_grad()
    def prune(self, weight: Float[Tensor, "rows d_in"], gram: Gram) -> Pruned:
        """The weight, pruned.

        Raises:
            ValueError: as for `SparseGPT`.
        """
        hessian = _hessian(weight, gram, self.damp)
        self.pattern.span(weight.shape)
        exact = weight.to(hessian)
        keep = self.pattern.mask(exact.abs() * gram.mean.diagonal().to(hessian).sqrt())
        pruned = refit(exact, hessian, keep) if self.refit else torch.where(keep, exact, 0)
        return Pruned(pruned.to(weight.dtype), keep, quadratic_loss(pruned - exact, hessian))


def _hessian(weight: Tensor, gram: Gram, damp: float) -> Tensor:
    if weight.ndim != 2 or weight.shape[1] != len(gram.mean):
        raise ValueError(f"the weight must be (rows, {len(gram.mean)}), got {tuple(weight.shape)}")
    # Half precision has neither the range nor the digits for an inverse.
    dtype = torch.promote_types(torch.promote_types(weight.dtype, gram.mean.dtype), torch.float32)
    return gram.damped(damp).to(weight.device, dtype)


Gradients = Callable[[Float[Tensor, " p"]], Float[Tensor, "n p"]]
"""Weights -> the gradients of n losses at them, one a row."""


@dataclass(frozen=True)
class Chita:
    """Prune by sparse least squares over gradients, and solve for the weights that stay (arXiv 2302.14623).

    min over |w|_0 <= k of 0.5 |y - A w|^2 + 0.5 n ridge |w - w0|^2, y = A w0 - first_order, with the gradients of n
    samples or batches as the rows of A (equations 5 and 7): the loss to second order with the empirical Fisher
    information in place of the Hessian, which is never formed. With `stages` above 1 it is CHITA++: the budget shrinks
    in steps, each around the weights of the last with gradients taken anew. The number of weights falls geometrically;
    the paper's own steps are not confirmed, nor a value for the ridge: both are choices.

    Args:
        keep: share of the weights that stay, floor(keep * p).
        ridge: lambda; relative to squared gradients.
        first_order: weight of the linear term: 0 where the gradients are of a trained model, 1 / batch size where rows
            are batch means (what the released code recommends).
        stages: see above.
        solver: the hard thresholding.
    """

    keep: float
    ridge: float = 1e-4
    first_order: float = 0.0
    stages: int = 1
    solver: HardThresholding = field(default_factory=HardThresholding)

    def __post_init__(self) -> None:
        Unstructured(self.keep)
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, got {self.stages}")

    @torch.no_grad()
    def prune(self, weights: Float[Tensor, " p"], gradients: Gradients) -> Pruned:
        """The weights, pruned; the loss is that of the last stage.

        Args:
            weights: (p,), it is not changed.
            gradients: called once a stage; see `gradient_rows` for those of a `Prunable`.

        Raises:
            ValueError: the gradients are misshapen, or something holds NaN.
        """
        p = len(weights)
        kept = int(Unstructured(self.keep).mask(torch.zeros(1, p)).sum())
        if kept == p:
            return Pruned(weights.clone(), torch.ones_like(weights, dtype=torch.bool), 0.0)
        current, loss = weights.to(torch.promote_types(weights.dtype, torch.float32)), 0.0
        for stage in range(1, self.stages + 1):
            count = kept if stage == self.stages else round(p * (max(kept, 1) / p) ** (stage / self.stages))
            rows = gradients(current).to(current)
            if rows.ndim != 2 or rows.shape[1] != p:
                raise ValueError(f"gradients must be (samples, {p}), got {tuple(rows.shape)}")
            problem = LeastSquares(rows, rows @ current - self.first_order, current, self.ridge * len(rows))
            current = self.solver.minimise(problem, current, count)
            loss = problem.value(current)
        return Pruned(current.to(weights.dtype), current != 0, loss)


def gradient_rows(
    target: Prunable, objective: Objective, params: tuple[str, ...] | None = None
) -> Float[Tensor, "batches p"]:
    """The gradients of each batch's loss, flattened and joined in the order of `target.tensors()`.

    Args:
        target: what is differentiated; its weights stay as they are.
        objective: one loss a row.
        params: names of the parameters; None takes all.

    Raises:
        ValueError: the objective fails (see `secateur.derivatives.loss_gradients`), or a parameter is missing.
    """
    with differentiable(target, params) as tensors:
        losses = objective.losses(target)
        return torch.stack(
            [torch.cat([part.flatten() for part in found.values()]) for found in loss_gradients(losses, tensors)]
        )
