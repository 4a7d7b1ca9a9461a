"""Rotations as three of a unit quaternion's components: the largest is left out, for the other three determine it.

Formats differ in the order of the components, in how they quantise the three, and in where they keep which one is
missing; they share that q and -q are the same rotation, so that the missing component can be taken as positive.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Integer

LARGEST_OTHER = float(np.sqrt(0.5))
"""No component but the largest is above it in magnitude."""

_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""Row m: the components that stay, in order, when component m is left out."""


def leave_out_largest(
    quats: Float32[np.ndarray, "N 4"],
) -> tuple[Float32[np.ndarray, "N 3"], Integer[np.ndarray, " N"]]:
    """What stays of each quaternion, normalised, and which component is left out: of equal ones the first.

    Args:
        quats: (N, 4) components in any order, of any norm but zero.

    Returns:
        (N, 3) components in order, each within +-LARGEST_OTHER, and (N,) indices 0 to 3.
    """
    largest = np.abs(quats).argmax(axis=1)
    rows = np.arange(len(quats))
    norms = np.copysign(np.linalg.norm(quats, axis=1), quats[rows, largest])
    return quats[rows[:, None], _OTHERS[largest]] / norms[:, None], largest


def restore_largest(
    others: Float32[np.ndarray, "N 3"], largest: Integer[np.ndarray, " N"]
) -> Float32[np.ndarray, "N 4"]:
    """The unit quaternions, each with its component `largest` positive; the inverse of `leave_out_largest`.

    Args:
        others: (N, 3) components in order. Where their norm exceeds 1, the missing component is 0.
        largest: (N,) which component is missing, 0 to 3.
    """
    quats = np.empty((len(others), 4), np.float32)
    rows = np.arange(len(others))
    quats[rows[:, None], _OTHERS[largest]] = others
    quats[rows, largest] = np.sqrt(np.maximum(1 - np.square(others).sum(axis=1), 0))
    return quats
