"""Sets of images against real ones, through the vectors of one feature network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from jaxtyping import Float
from torch import Tensor

from secateur.metrics.distribution.frechet import frechet_distance, frechet_floor
from secateur.metrics.distribution.kid import KernelDistance, kernel_distance
from secateur.metrics.distribution.moments import Moments
from secateur.metrics.distribution.samples import checked
from secateur.metrics.features.inception import INCEPTION
from secateur.metrics.features.interface import Features, features_of

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""Those of torchmetrics; sets below 1,000 images are compared in subsets of half the smaller one."""


def frechet_name(features: str) -> str:
    """What a Frechet distance on these features is called: "FID" on Inception of 2015-12-05, else "FD-<features>"."""
    return "FID" if features == INCEPTION else f"FD-{features}"


@dataclass(frozen=True, slots=True)
class Distances:
    """How far a set of images is from a reference, on the features of one network.

    Args:
        name: "FID", or "FD-" and the features' name.
        frechet: the distance.
        floor: that of as many real images apart from the reference; None where there were too few, or none.
        kid: kernel distance on the same features.
        samples: images in the set; a Frechet distance at another number cannot be compared.
        reference_samples: real images in the reference.
        dimensions: of the features.
        singular: whether the samples' covariance is singular, having no more samples than dimensions.
        weights_sha256: of the network's weights.
    """

    name: str
    frechet: float
    floor: float | None
    kid: KernelDistance
    samples: int
    reference_samples: int
    dimensions: int
    singular: bool
    weights_sha256: str


@dataclass(frozen=True)
class DistributionJudge:
    """Compares sets of images with real ones.

    Args:
        features: the network that looks at images.
        vectors: (M, D) of the reference's images, on the CPU.
        moments: of those.
        held_out: (H, D) of real images apart from the reference, for floors; None: no floors.
    """

    features: Features
    vectors: Float[Tensor, "M D"]
    moments: Moments
    held_out: Float[Tensor, "H D"] | None = None

    @classmethod
    def of(
        cls,
        features: Features,
        reference: Float[Tensor, "M C H W"] | Iterable[Float[Tensor, "B C H W"]],
        held_out: Float[Tensor, "H C H W"] | Iterable[Float[Tensor, "B C H W"]] | None = None,
        *,
        batch_size: int = 256,
    ) -> Self:
        """A judge by real images in [0, 1], or by batches of them. Neither set may have trained the network.

        Raises:
            ValueError: a set is empty, or an image is not what the network looks at, or not finite.
        """
        vectors = features_of(features, reference, batch_size)
        apart = None if held_out is None else features_of(features, held_out, batch_size)
        return cls(features, vectors, Moments.of(vectors), apart)

    def distances(self, vectors: Float[Tensor, "N D"], *, seed: int = 0) -> Distances:
        """How far images are, given their vectors by `features`.

        Args:
            vectors: on the CPU.
            seed: of the kernel distance's subsets, and of which held-out images make the floor.

        Raises:
            ValueError: there are fewer than 4 vectors of a set, or some are not finite; says how many.
        """
        vectors = checked(vectors)
        fewest = min(len(vectors), len(self.vectors))
        if fewest < 4:
            raise ValueError(f"a distance needs at least 4 images of each set, got {fewest}")
        size = KID_SUBSET_SIZE if fewest >= KID_SUBSET_SIZE else fewest // 2
        own = Moments.of(vectors)
        apart = self.held_out
        floor = None
        if apart is not None and len(apart) >= len(vectors):
            floor = frechet_floor(apart, self.moments, len(vectors), seed=seed)
        return Distances(
            frechet_name(self.features.name),
            frechet_distance(own, self.moments),
            floor,
            kernel_distance(vectors, self.vectors, subsets=KID_SUBSETS, subset_size=size, seed=seed),
            len(vectors),
            len(self.vectors),
            self.features.dimensions,
            own.singular,
            self.features.weights_sha256,
        )
