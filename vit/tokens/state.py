"""What is known of the tokens on their way through the layers, and what it adds to their attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit.tokens.reduction import Reduction

_UNSEEN = 1e-6
"""What a token that is only masked still weighs: so little that nothing changes, and enough for a gradient."""


@dataclass(frozen=True, slots=True)
class State:
    """The tokens that are left.

    Args:
        sizes: (batch, tokens) how many of the original tokens each one holds; None: one each, or nobody asks.
        valid: (batch, tokens) False for padding; None: there is none.
        policy: (batch, tokens) 0 for tokens that are only masked; None: none is.
    """

    sizes: Float[Tensor, "batch tokens"] | None = None
    valid: Bool[Tensor, "batch tokens"] | None = None
    policy: Float[Tensor, "batch tokens"] | None = None

    @classmethod
    def under(cls, mask: Float[Tensor, "batch one queries tokens"] | None, tokens: Tensor) -> Self:
        """The state before the first layer, whose call has this mask, added to logits.

        Raises:
            ValueError: it is no padding mask. While torch traces, that is not looked at.
        """
        if mask is None:
            return cls()
        lowest = torch.finfo(mask.dtype).min / 2
        if not torch.compiler.is_compiling():
            same = bool((mask == mask[:, :, :1]).all())
            if not same or bool(((mask != 0) & (mask > lowest)).any()):
                raise ValueError("tokens can go under a padding mask only, which is alike for all queries, and 0 or 1")
        return cls(valid=(mask[:, 0, 0] > lowest).expand(tokens.shape[0], -1))

    def after(self, reduction: Reduction, tokens: Float[Tensor, "batch tokens width"], count: bool) -> State:
        """The state of the fewer tokens; sizes are counted from now on if `count` is set."""
        sizes = self.sizes
        if count or sizes is not None:
            ones = tokens.new_ones(tokens.shape[:2]) if self.valid is None else self.valid.to(tokens.dtype)
            sizes = reduction.total(ones if sizes is None else sizes)
        return State(sizes, None if self.valid is None else reduction.any(self.valid))

    def bias(self, like: Tensor, proportional: bool) -> Float[Tensor, "batch 1 queries tokens"] | None:
        """What is added to the logits of attention, for padding, sizes (if `proportional`) and masked tokens."""
        bias: Tensor | None = None
        if self.valid is not None:
            lowest = torch.finfo(like.dtype).min
            bias = torch.zeros_like(self.valid, dtype=like.dtype).masked_fill(~self.valid, lowest)[:, None, None]
        if self.sizes is not None and proportional:
            # Padding has size 0, and is masked already.
            logs = self.sizes.clamp_min(1).log().to(like.dtype)[:, None, None]
            bias = logs if bias is None else bias + logs
        if self.policy is not None:
            pairs = _policy_bias(self.policy.to(like.dtype))
            bias = pairs if bias is None else bias + pairs
        return bias


def _policy_bias(policy: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch 1 tokens tokens"]:
    """Logs of how much each token sees of each other; each sees itself whole (DynamicViT, arXiv 2106.02034, eq. 11)."""
    seen = (policy + _UNSEEN).log()[:, None, None]
    itself = torch.eye(policy.shape[1], dtype=torch.bool, device=policy.device)
    return seen.expand(-1, -1, policy.shape[1], -1).masked_fill(itself, 0.0)
