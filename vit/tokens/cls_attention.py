"""Dropping the patches that the class token attends to least, and what EViT makes of them: one more token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vit.tokens.pruner import Choice, DroppingPruner, Tokens, best_patches, with_prefix
from vit.tokens.reduction import Reduction

Fusion = Literal["none", "sum", "mean"]


@dataclass(frozen=True)
class ClsAttention(DroppingPruner):
    """EViT (Liang et al. 2022, arXiv 2202.07800): patches are worth what the class token attends to them.

    Attention is averaged over heads, and made anew for the first token only, so that the model may run fused kernels.
    EViT reorganises tokens between attention and MLP, keeps ceil(rate * patches), and puts the fused token beside them.
    Here the fused token is one of those that stay, so that equal schedules cost the same. It may be dropped later.

    Args:
        fusion: "sum": the others become sum_i a_i x_i, with a the class token's attention (section 3.2), whose sum is
            below 1, so that the token shrinks; "mean": the same with weights that sum to 1; "none": they are gone.
    """

    fusion: Fusion = "none"
    needs_cls_attention = True

    def scores(self, tokens: Tokens) -> Float[Tensor, "batch patches"]:
        """(batch, patches) the class token's attention; the model needs one in the first place."""
        assert tokens.cls_attention is not None
        if tokens.prefix < 1:
            raise ValueError("attention of the class token is asked for, but the model has no token before its patches")
        return tokens.cls_attention[:, tokens.prefix :]

    def choose(self, tokens: Tokens, keep: int) -> Choice:
        """Keep the best `keep` patches; or one less, and the token made of the others."""
        if self.fusion == "none":
            return super().choose(tokens, keep)
        scores = self.scores(tokens)
        best, others = best_patches(tokens, scores, keep - 1)
        # The fused token stands in the place of the best that it holds, behind all others.
        kept = with_prefix(torch.cat([best.sort(dim=1).values, others[:, :1]], dim=1), tokens.prefix)
        total = tokens.hidden_states.shape[1]
        last = kept.shape[1] - 1
        owners = Reduction(total, kept).owners
        into = torch.where(owners < 0, last, owners)
        weights = scores.new_zeros(scores.shape).scatter(1, others, scores.gather(1, others))
        if self.fusion == "mean":
            weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        weights = torch.nn.functional.pad(weights, (tokens.prefix, 0))
        return Choice(Reduction(total, kept, into, torch.where(into == last, weights, 1.0)))
