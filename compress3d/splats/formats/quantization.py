"""How one byte stands for an opacity or a colour in the formats that share these conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SH_C0 = 0.28209479177387814
"""The degree-0 real spherical harmonic: colour = 0.5 + SH_C0 * sh0."""

LARGEST_LOGIT = 16.0
"""The logit that stands for opacity 1, and negated for 0, whatever the format.

No specification gives one, as the logit is infinite. Its float32 sigmoid is neither 1 nor 0, so it can be trained, and
so close to them that a byte comes back as it was and no pixel changes.
"""

FLAT_LOG_SCALE = float(np.log(1e-6))
"""The log-scale given to an axis of no extent at all: a millionth of a world unit, below every renderer's blur."""


def opacities_from_bytes(alphas: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits of alphas / 255; 0 and 255 give -LARGEST_LOGIT and LARGEST_LOGIT."""
    return opacities_from_alphas(np.arange(256) / 255)[alphas]


def opacities_from_alphas(alphas: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Logits of opacities in [0, 1]; 0 and 1 give -LARGEST_LOGIT and LARGEST_LOGIT, what lies outside NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.log(alphas) - np.log1p(-alphas)
    return np.nan_to_num(logits, nan=np.nan, posinf=LARGEST_LOGIT, neginf=-LARGEST_LOGIT).astype(np.float32)


def alphas_from_opacities(opacities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Opacities in [0, 1] of logits."""
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-opacities))).astype(np.float32)


def sh0_from_colors(colors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Degree-0 coefficients of colours that are 0..1 within the gamut."""
    return ((colors - 0.5) / SH_C0).astype(np.float32)


def colors_from_sh0(sh0: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours, 0..1 within the gamut, of degree-0 coefficients."""
    return (0.5 + SH_C0 * sh0).astype(np.float32)


def log_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms of linear scales: FLAT_LOG_SCALE for 0, NaN for a negative one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(scales.astype(np.float32))
    return np.where(scales == 0, np.float32(FLAT_LOG_SCALE), logs)


def to_levels(values: NDArray[np.floating[Any]], levels: int) -> NDArray[np.uint32]:
    """Round values in [0, 1] to the nearest of `levels` integers 0 .. levels - 1, clamping what lies outside."""
    return np.clip(np.floor(values * (levels - 1) + 0.5), 0, levels - 1).astype(np.uint32)
