"""Torch networks as Prunables that are really cut: unit maps, masks, smaller copies, and files that hold them."""

from secateur.surgery.cut import Count
from secateur.surgery.graph import trace
from secateur.surgery.network import Network
from secateur.surgery.stand_in import Block

__all__ = ["Block", "Count", "Network", "trace"]
