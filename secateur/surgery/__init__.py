"""Torch networks as Prunables that are really cut: unit maps, masks, smaller copies, and files that hold them."""

from secateur.surgery.cut import Block, Count
from secateur.surgery.graph import trace
from secateur.surgery.network import Network

__all__ = ["Block", "Count", "Network", "trace"]
