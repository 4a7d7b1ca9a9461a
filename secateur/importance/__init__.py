"""What is each unit worth? Criteria that need no domain, one family a file."""

from secateur.importance.activation import ActivationAttention, Wanda, block_influence
from secateur.importance.combine import Normalized, Product, RankMixture, Sampled
from secateur.importance.curvature import Fisher, HessianDiagonal, HessianProduct, HessianTrace, MaskHessian
from secateur.importance.gradient import MaskTaylor, Taylor
from secateur.importance.magnitude import Lamp, Magnitude
from secateur.importance.objective import Disturbed, Objective, Supervised
from secateur.importance.perturbation import Ablation, Bonsai
from secateur.importance.random import Random
from secateur.importance.synaptic import GraSP, SynFlow

__all__ = [
    "Ablation",
    "ActivationAttention",
    "Bonsai",
    "Disturbed",
    "Fisher",
    "GraSP",
    "HessianDiagonal",
    "HessianProduct",
    "HessianTrace",
    "Lamp",
    "Magnitude",
    "MaskHessian",
    "MaskTaylor",
    "Normalized",
    "Objective",
    "Product",
    "Random",
    "RankMixture",
    "Sampled",
    "Supervised",
    "SynFlow",
    "Taylor",
    "Wanda",
    "block_influence",
]
