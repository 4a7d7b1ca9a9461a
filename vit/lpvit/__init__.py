"""LPViT: block-sparse linear layers of vision transformers, by distortion, power and latency."""

from vit.lpvit.costs import BlockLayer, BlockTime, input_width, measure_block_time
from vit.lpvit.prune import LPViT, Pruned

__all__ = ["BlockLayer", "BlockTime", "LPViT", "Pruned", "input_width", "measure_block_time"]
