"""What every token pruner is: it sees the tokens before or within a layer, and says which fewer tokens go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vit.tokens.costs import LayerCost
from vit.tokens.reduction import Reduction


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a pruner sees.

    Args:
        hidden_states: (batch, tokens, width), the first `prefix` of which are no patches and always stay.
        prefix: number of protected tokens: class token, distillation token, registers.
        layer: before which layer, or within which one, they are.
        keys: (batch, tokens, head width) the last attention's keys, mean over heads; None unless the pruner needs them.
        cls_attention: (batch, tokens) the last attention of the first token to all, mean over heads; None unless the
            pruner needs it.
        sizes: (batch, tokens) how many of the original tokens each one holds; None: one each.
        valid: (batch, tokens) False for padding; None: there is none.
        policy: (batch, tokens) 1 for a token that others may see, 0 for one that is only masked; None: all 1.
    """

    hidden_states: Float[Tensor, "batch tokens width"]
    prefix: int = 0
    layer: int = 0
    keys: Float[Tensor, "batch tokens head_width"] | None = None
    cls_attention: Float[Tensor, "batch tokens"] | None = None
    sizes: Float[Tensor, "batch tokens"] | None = None
    valid: Bool[Tensor, "batch tokens"] | None = None
    policy: Float[Tensor, "batch tokens"] | None = None

    @property
    def patches(self) -> int:
        """How many tokens may go."""
        return self.hidden_states.shape[1] - self.prefix


@dataclass(frozen=True, slots=True)
class Choice:
    """What a pruner decides.

    Args:
        reduction: the fewer tokens; None: all go on.
        prediction: of an auxiliary head, in whatever shape the task has; None: there is none.
        loss: a scalar to add to the task's loss, already weighted; None: there is none.
        policy: (batch, tokens) as in `Tokens`, for the layers that follow; None: as it was.
    """

    reduction: Reduction | None
    prediction: Tensor | None = None
    loss: Tensor | None = None
    policy: Float[Tensor, "batch tokens"] | None = None


class TokenPruner(ABC):
    """A way to have fewer tokens.

    Attributes:
        needs_keys: whether `Tokens.keys` has to be there.
        needs_cls_attention: whether `Tokens.cls_attention` has to be there.
        proportional: whether attention counts a merged token as often as it has members (log sizes are added).
    """

    needs_keys: bool = False
    needs_cls_attention: bool = False
    proportional: bool = False

    @abstractmethod
    def choose(self, tokens: Tokens, keep: int) -> Choice:
        """Leave `keep` patches, beside the protected tokens, which stay in front.

        Args:
            tokens: what there is.
            keep: from `fewest(tokens.patches)` to one less than there are.
        """

    def fewest(self, patches: int) -> int:
        """The fewest patches that one step can leave."""
        return 1

    def begin(self) -> None:
        """A forward of the model begins: a pruner that draws random numbers draws anew in training."""
        return None

    def macs(self, patches: int, keep: int, layer: LayerCost) -> int:
        """Multiply-adds, in products of matrices, of choosing for an image in evaluation mode.

        Args:
            patches: how many there are, protected tokens not counted.
            keep: how many stay.
            layer: whose keys or attention is looked at. What it costs to get these is counted there.
        """
        return 0

    def arguments(self) -> dict[str, Any]:
        """Arguments of the class, as JSON holds them, that make the same pruner; its weights are not among them."""
        return {each.name: getattr(self, each.name) for each in fields(self)} if is_dataclass(self) else {}


class DroppingPruner(TokenPruner):
    """Scores the patches, and drops all but the highest."""

    @abstractmethod
    def scores(self, tokens: Tokens) -> Float[Tensor, "batch patches"]:
        """(batch, patches) what each patch is worth: the higher, the more worth keeping."""

    def choose(self, tokens: Tokens, keep: int) -> Choice:
        """Drop all but the `keep` patches of the highest scores; among equal ones the first stay. Order is kept."""
        kept, _ = best_patches(tokens, self.scores(tokens), keep)
        return Choice(Reduction(tokens.hidden_states.shape[1], with_prefix(kept.sort(dim=1).values, tokens.prefix)))


def best_patches(
    tokens: Tokens, scores: Float[Tensor, "batch patches"], keep: int
) -> tuple[Int64[Tensor, "batch keep"], Int64[Tensor, "batch others"]]:
    """The `keep` patches of the highest scores, from the best on, and the others; padding comes last.

    The count is fixed, so that shapes do not depend on data.
    """
    scores = scores.detach()
    if tokens.valid is not None:
        scores = scores.masked_fill(~tokens.valid[:, tokens.prefix :], -torch.inf)
    # A stable sort, since top-k promises nothing about which of two equal scores it takes.
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :keep], order[:, keep:]


def with_prefix(patches: Int64[Tensor, "batch keep"], prefix: int) -> Int64[Tensor, "batch tokens"]:
    """Indices of tokens from indices of patches, those of the protected tokens first."""
    front = torch.arange(prefix, device=patches.device).expand(patches.shape[0], -1)
    return torch.cat([front, patches + prefix], dim=1)
