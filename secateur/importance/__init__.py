"""What is each unit worth? Criteria that need no domain, one family a file."""

from secateur.importance.combine import Product, RankMixture, Sampled
from secateur.importance.curvature import Fisher, HessianDiagonal, HessianProduct, HessianTrace, MaskHessian
from secateur.importance.gradient import MaskTaylor, Taylor
from secateur.importance.magnitude import Magnitude
from secateur.importance.objective import Objective
from secateur.importance.random import Random

__all__ = [
    "Fisher",
    "HessianDiagonal",
    "HessianProduct",
    "HessianTrace",
    "Magnitude",
    "MaskHessian",
    "MaskTaylor",
    "Objective",
    "Product",
    "Random",
    "RankMixture",
    "Sampled",
    "Taylor",
]
