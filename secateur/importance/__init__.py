"""What is each unit worth? Criteria that need no domain, one family a file."""

from secateur.importance.combine import Product, RankMixture, Sampled
from secateur.importance.magnitude import Magnitude
from secateur.importance.random import Random

__all__ = ["Magnitude", "Product", "Random", "RankMixture", "Sampled"]
