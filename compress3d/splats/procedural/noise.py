"""Smooth random fields in space, a pure function of position and seed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numba import njit


@njit(cache=True)
def _lattice(x: int, y: int, z: int, seed: int) -> float:
    """A pseudo-random number in [0, 1) for an integer lattice point."""
    h = x * 374761393 + y * 668265263 + z * 1440662683 + seed * 2147001325
    h = (h ^ (h >> 13)) * 1274126177
    h = (h ^ (h >> 16)) * 1103515245
    return float((h >> 7) & 0xFFFFFF) / 16777216.0


@njit(cache=True)
def _value(x: float, y: float, z: float, seed: int) -> float:
    """Lattice values joined by quintic fades (Perlin, "Improving noise", 2002), in [0, 1)."""
    ix, iy, iz = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    fx, fy, fz = x - ix, y - iy, z - iz
    wx = fx * fx * fx * (fx * (fx * 6 - 15) + 10)
    wy = fy * fy * fy * (fy * (fy * 6 - 15) + 10)
    wz = fz * fz * fz * (fz * (fz * 6 - 15) + 10)
    total = 0.0
    for corner in range(8):
        dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (wx if dx else 1 - wx) * (wy if dy else 1 - wy) * (wz if dz else 1 - wz)
        total += weight * _lattice(ix + dx, iy + dy, iz + dz, seed)
    return total


@njit(cache=True)
def _fractal(points: np.ndarray, octaves: int, seed: int) -> np.ndarray:
    out = np.empty(len(points), np.float32)
    for i in range(len(points)):
        total, weight, amplitude, frequency = 0.0, 0.0, 1.0, 1.0
        for octave in range(octaves):
            shift = 37.1 * octave
            x, y, z = points[i, 0] * frequency, points[i, 1] * frequency, points[i, 2] * frequency
            total += amplitude * _value(x + shift, y - shift, z + shift, seed + octave)
            weight += amplitude
            amplitude *= 0.5
            frequency *= 2.03
        out[i] = total / weight
    return out


def fractal_noise(points: Float[np.ndarray, "N 3"], octaves: int = 3, seed: int = 0) -> Float[np.ndarray, " N"]:
    """Fractal value noise in [0, 1): each octave doubles the frequency and halves the amplitude.

    Args:
        points: (N, 3) positions; features are about one unit wide, so scale the positions to choose their size.
        octaves: number of layers.
        seed: another seed gives another field.
    """
    return _fractal(np.ascontiguousarray(points, np.float64), octaves, seed)


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic ramp between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)
