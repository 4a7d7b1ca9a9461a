"""Fewer tokens for vision transformers: one interface for what drops patches and what merges them."""

from vit.tokens.random_dropping import RandomDropping
from vit.tokens.reduce import TokenReduction, reduce_tokens
from vit.tokens.reduction import Reduction
from vit.tokens.schedule import Counts, KeepRates, PerLayer, Target
from vit.tokens.token_norm import TokenNorm
from vit.tokens.tome import TokenMerging

__all__ = [
    "Counts",
    "KeepRates",
    "PerLayer",
    "RandomDropping",
    "Reduction",
    "Target",
    "TokenMerging",
    "TokenNorm",
    "TokenReduction",
    "reduce_tokens",
]
