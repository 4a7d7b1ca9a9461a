"""How far a set of images is from another, and how sure a mean over images is."""

from secateur.metrics.distribution.bootstrap import mean_interval, paired_interval
from secateur.metrics.distribution.clip_score import clip_score
from secateur.metrics.distribution.cmmd import cmmd
from secateur.metrics.distribution.frechet import (
    frechet_distance,
    frechet_distance_of_vectors,
    frechet_error,
    frechet_floor,
)
from secateur.metrics.distribution.judge import Distances, DistributionJudge, frechet_name
from secateur.metrics.distribution.kid import KernelDistance, kernel_distance
from secateur.metrics.distribution.moments import Moments, gather_moments
from secateur.metrics.interval import Interval

__all__ = [
    "Distances",
    "DistributionJudge",
    "Interval",
    "KernelDistance",
    "Moments",
    "clip_score",
    "cmmd",
    "frechet_distance",
    "frechet_distance_of_vectors",
    "frechet_error",
    "frechet_floor",
    "frechet_name",
    "gather_moments",
    "kernel_distance",
    "mean_interval",
    "paired_interval",
]
