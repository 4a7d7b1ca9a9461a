"""Makes a clean scene as redundant as optimisation leaves one."""

from __future__ import annotations

import numpy as np

from compress3d.splats.procedural.surfels import Surfels, any_tangents, unit

NEAR_DUPLICATES, LAYERS, HAZE = 0.44, 0.407, 0.148
"""Parts of the added surfels; the rest are floaters."""


def as_if_trained(clean: Surfels, extra: int, rng: np.random.Generator) -> Surfels:
    """`clean` with `extra` surfels that add little to any picture.

    They are near-duplicates of others, wider layers just below surfaces, faint haze around them, and floaters in the
    air. This is what density control leaves behind, and what pruning should find.
    """
    duplicates, layers, haze = (int(share * extra) for share in (NEAR_DUPLICATES, LAYERS, HAZE))
    floaters = extra - duplicates - layers - haze
    added = [
        _near_duplicates(clean, duplicates, rng),
        _layers(clean, layers, rng),
        _haze(clean, haze, rng),
        _floaters(clean, floaters, rng),
    ]
    # Training leaves few Gaussians fully opaque; those below make up for it.
    thinned = clean.with_arrays(opacities=clean.opacities * rng.beta(5, 1, len(clean)))
    joined = Surfels.join([thinned, *added])
    return joined.select(rng.permutation(len(joined)))


def _picked(clean: Surfels, count: int, rng: np.random.Generator) -> Surfels:
    """Random surfels; the very wide ones, where the scene is thinly covered, are not made wider still."""
    usual = np.flatnonzero(clean.sizes[:, 0] < 3 * np.median(clean.sizes[:, 0]))
    return clean.select(usual[rng.integers(0, len(usual), count)])


def _near_duplicates(clean: Surfels, count: int, rng: np.random.Generator) -> Surfels:
    of = _picked(clean, count, rng)
    width = of.sizes[:, :1]
    return of.with_arrays(
        positions=of.positions + 0.25 * width * rng.normal(size=(count, 3)) * (1 - 0.8 * np.abs(of.normals)),
        sizes=of.sizes * rng.uniform(0.8, 1.1, (count, 1)),
        opacities=of.opacities * rng.uniform(0.3, 0.9, count),
        colours=np.clip(of.colours * rng.uniform(0.92, 1.08, (count, 1)), 0, 1),
    )


def _layers(clean: Surfels, count: int, rng: np.random.Generator) -> Surfels:
    of = _picked(clean, count, rng)
    depth = of.sizes[:, :1] * rng.uniform(0.4, 1.4, (count, 1))
    return of.with_arrays(
        positions=of.positions - of.normals * depth,
        sizes=of.sizes * [1.5, 1.5, 2.0],
        opacities=rng.beta(2, 1.5, count),
        colours=of.colours * 0.8,
    )


def _haze(clean: Surfels, count: int, rng: np.random.Generator) -> Surfels:
    of = _picked(clean, count, rng).matte()
    return of.with_arrays(
        positions=of.positions + of.sizes[:, :1] * rng.normal(size=(count, 3)),
        sizes=of.sizes[:, :1] * rng.lognormal(0.5, 0.3, (count, 3)),
        opacities=rng.uniform(0.004, 0.03, count),
    )


def _floaters(clean: Surfels, count: int, rng: np.random.Generator) -> Surfels:
    low, high = clean.positions.min(0), clean.positions.max(0)
    normals = unit(rng.normal(size=(count, 3)))
    grey = rng.uniform(0.15, 0.8, (count, 1)) * rng.uniform(0.85, 1.0, (count, 3))
    return Surfels.of(
        rng.uniform(low, high, (count, 3)),
        any_tangents(normals),
        normals,
        np.median(clean.sizes[:, 0]) * rng.lognormal(0.1, 0.5, (count, 3)),
        grey,
        opacities=rng.beta(1.0, 20, count),
    )
