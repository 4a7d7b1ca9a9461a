"""Dropping patches at random: the baseline that every token pruner has to beat."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit.tokens.noise import Noise
from vit.tokens.pruner import DroppingPruner, Tokens


class RandomDropping(DroppingPruner, nn.Module):
    """Every patch is as likely to stay as every other.

    In training each step draws anew (patch dropout, Liu et al. 2022, arXiv 2208.07220, which trains so too); in
    evaluation an image at the same place of a batch always loses the same patches.

    Args:
        seed: of the draws, which touch no global random state.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.noise = Noise(seed)

    def begin(self) -> None:
        """A training step begins: draw anew."""
        self.noise.advance()

    def scores(self, tokens: Tokens) -> Float[Tensor, "batch patches"]:
        """(batch, patches) uniform in (0, 1)."""
        return self.noise.uniform(tokens.layer, tokens.hidden_states[:, tokens.prefix :])

    def arguments(self) -> dict[str, Any]:
        """What makes the same pruner, number of steps aside."""
        return {"seed": self.noise.seed}
