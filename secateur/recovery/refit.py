"""The weights that stay, solved again by least squares from what their layer sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.solvers.gram import Gram
from secateur.solvers.obs import refit


@dataclass(frozen=True)
class ObsRefit:
    """Optimal Brain Surgeon's update of the weights that stay: w_K + H_KK^-1 H_KP w_P.

    For whole columns it is the update of OBSPA (Wang et al.: Structurally Prune Anything, arXiv 2403.18955), which
    prunes without fine-tuning; data-free where the inputs behind the Gram matrix come from a model that was fed noise.
    Convolution weights are given flattened to (out, in * kernel).

    Args:
        damp: share of the mean diagonal that is added to the diagonal; 0 is plain least squares, which needs inputs of
            full rank.

    Raises:
        ValueError: `damp` is negative.
    """

    damp: float = 0.01

    def __post_init__(self) -> None:
        if not self.damp >= 0:
            raise ValueError(f"damp must not be negative, got {self.damp}")

    @torch.no_grad()
    def masked(
        self, weight: Float[Tensor, "rows d_in"], gram: Gram, keep: Bool[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_in"]:
        """The best weight with zeros outside the mask; equal to `weight`, bit for bit, where the mask is full.

        Raises:
            ValueError: shapes do not agree, something holds NaN, or the Gram matrix is singular and not damped.
        """
        dtype = torch.promote_types(torch.promote_types(weight.dtype, gram.mean.dtype), torch.float32)
        hessian = gram.damped(self.damp).to(weight.device, dtype)
        return refit(weight.to(dtype), hessian, keep).to(weight.dtype)

    def columns(
        self, weight: Float[Tensor, "rows d_in"], gram: Gram, keep: Bool[Tensor, " d_in"]
    ) -> Float[Tensor, "rows kept"]:
        """The best weight that reads only the kept inputs, for a layer whose producer was cut.

        Raises:
            ValueError: as for `masked`.
        """
        if keep.shape != weight.shape[1:]:
            raise ValueError(f"keep must be ({weight.shape[1]},), one for each input, got {tuple(keep.shape)}")
        return self.masked(weight, gram, keep.expand_as(weight))[:, keep]
