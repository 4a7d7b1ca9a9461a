"""Distances between sets of images, as measurements."""

from __future__ import annotations

import math
from typing import Any

from secateur.evaluation.measurements import mean_of
from secateur.evaluation.record import Measurement
from secateur.metrics.distribution import Distances
from secateur.report.record import to_json


def distance_measurements(found: Distances, features: str, error: float | None) -> dict[str, Measurement]:
    """The Frechet distance and the kernel distance, named after the features.

    The kernel distance scatters over subsets of m vectors by `std`, so over all N of them by about std sqrt(m / N).

    Args:
        found: the distances.
        features: name of the network that they are taken on.
        error: standard error of the Frechet distance; None where it is not known.
    """
    kid, samples = found.kid, found.samples
    scatter = kid.std * math.sqrt(kid.subset_size / samples)
    title = f"KID-{features}"
    return {
        found.name.lower(): mean_of(found.frechet, "", found.name, "lower", samples=samples, error=error),
        title.lower(): mean_of(kid.mean, "", title, "lower", samples=samples, error=scatter),
    }


def distance_details(found: Distances) -> dict[str, Any]:
    """What these distances were held against and on what features, for a subject's details."""
    return {
        "floor": to_json(found.floor),
        "reference_samples": found.reference_samples,
        "dimensions": found.dimensions,
        "singular": found.singular,
        "weights_sha256": found.weights_sha256,
        "kid_subsets": found.kid.subsets,
        "kid_subset_size": found.kid.subset_size,
    }
