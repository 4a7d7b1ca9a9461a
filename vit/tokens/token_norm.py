"""Dropping the patches whose hidden states are shortest."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vit.tokens.pruner import DroppingPruner, Tokens


@dataclass(frozen=True)
class TokenNorm(DroppingPruner):
    """||x_n||_2 of each patch's hidden state: a baseline that needs neither attention nor training."""

    def scores(self, tokens: Tokens) -> Float[Tensor, "batch patches"]:
        """(batch, patches) Euclidean norms."""
        return tokens.hidden_states[:, tokens.prefix :].norm(dim=-1)
