"""Fewer tokens for vision transformers: one interface for what drops patches and what merges them."""

from vit.tokens.cls_attention import ClsAttention
from vit.tokens.cropr import Cropr, LinearScorer
from vit.tokens.dynamic_vit import DynamicViT
from vit.tokens.pictures import draw_kept, kept_by_layer
from vit.tokens.random_dropping import RandomDropping
from vit.tokens.reduce import TokenReduction, reduce_tokens
from vit.tokens.reduced_model import ReducedModel
from vit.tokens.reduction import Reduction
from vit.tokens.schedule import Counts, KeepRates, PerLayer, Target
from vit.tokens.token_norm import TokenNorm
from vit.tokens.tome import TokenMerging

__all__ = [
    "ClsAttention",
    "Counts",
    "Cropr",
    "DynamicViT",
    "KeepRates",
    "LinearScorer",
    "PerLayer",
    "RandomDropping",
    "ReducedModel",
    "Reduction",
    "Target",
    "TokenMerging",
    "TokenNorm",
    "TokenReduction",
    "draw_kept",
    "kept_by_layer",
    "reduce_tokens",
]
