"""Higher spherical harmonics as a palette: few sets of coefficients stand for many, in the values of one codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from compress3d.splats.formats.codebooks import nearest, scalar_codebook
from compress3d.splats.formats.palette import row_palette
from compress3d.splats.formats.quantization import alphas_from_opacities


@dataclass(frozen=True, eq=False)
class HarmonicsPalette:
    """Coefficients of N Gaussians above degree 0: `codebook[indices[labels]]`, (N, K, 3).

    Args:
        labels: (N,) which entry each Gaussian has; the most used entry is 0.
        indices: (P, K, 3) which value of the codebook each coefficient is, by channel.
        codebook: (256,) ascending values.
    """

    labels: Int64[np.ndarray, " N"]
    indices: UInt8[np.ndarray, "P K 3"]
    codebook: Float32[np.ndarray, " 256"]


def harmonics_palette(
    shN: Float32[np.ndarray, "N K 3"], weights: Float32[np.ndarray, " N"], size: int
) -> HarmonicsPalette:
    """At most `size` entries with little squared error.

    Args:
        shN: of N >= 1 Gaussians.
        weights: what an error in each of them costs, see `visibility`.
        size: the most entries.
    """
    count, coefficients = shN.shape[:2]
    palette, labels = row_palette(shN.reshape(count, -1), size, weights)
    usage = np.bincount(labels, minlength=len(palette))
    # Most used first: labels then share their high byte, which saves 2 % of the harmonics' bytes in a SOG.
    by_usage = np.argsort(-usage, kind="stable")
    palette, labels = palette[by_usage], np.argsort(by_usage)[labels]
    mass = np.repeat(usage[by_usage].astype(np.float64), 3 * coefficients)
    codebook = scalar_codebook(palette.reshape(-1), weights=mass)
    return HarmonicsPalette(labels, nearest(palette, codebook).reshape(-1, coefficients, 3), codebook)


def visibility(arrays: Mapping[str, np.ndarray]) -> Float32[np.ndarray, " N"]:
    """How much an error in a Gaussian is seen: the root of its opacity times its largest cross-section.

    The root measured better than the product (0.1 dB) and than no weights (0.9 dB) on a real scene: what is
    large is often hidden. Extremes are clipped lest a few Gaussians take the whole palette.
    """
    two_largest = np.sort(arrays["scales"], axis=1)[:, 1:].sum(axis=1)
    logs = (two_largest + np.log(np.maximum(alphas_from_opacities(arrays["opacities"]), 1 / 512))) / 2
    return np.exp(np.clip(logs - np.median(logs), -7, 7)).astype(np.float32)
