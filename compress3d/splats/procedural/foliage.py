"""Leaves: small folded blades on the shells of tufts, one tuft at the tip of each twig."""

from __future__ import annotations

import numpy as np

from compress3d.splats.procedural.noise import fractal_noise
from compress3d.splats.procedural.surfels import Surfels, round_surfels, unit
from compress3d.splats.procedural.wood import BonsaiTree

LEAVES = 64_000
"""Leaves of a full tree; more Gaussians than this give each leaf more detail, fewer give fewer, larger leaves."""
HALF_LENGTH = 0.0080
HALF_WIDTH = 0.0031
TUFT = 0.030
DEEP = np.array([0.018, 0.060, 0.016])
FRESH = np.array([0.100, 0.225, 0.028])
TIP = np.array([0.30, 0.42, 0.06])
VEIN = np.array([0.22, 0.36, 0.09])
UP = np.array([0.0, 1.0, 0.0])


def leaves(tree: BonsaiTree, count: int, rng: np.random.Generator) -> Surfels:
    """`count` surfels of foliage: each leaf has as many as the count allows, at least one."""
    centres, outward, radii = _tufts(tree, rng)
    number = min(count, LEAVES)
    tuft = np.searchsorted(np.cumsum(radii**2) / (radii**2).sum(), np.minimum(rng.random(number), 1 - 1e-9))
    direction = _shell_directions(number, rng)
    depth = 1 - 0.75 * rng.random(number) ** 2.2
    flat = np.array([1.0, 0.55, 1.0])
    centre = centres[tuft] + direction * flat * (radii[tuft] * depth)[:, None]
    centre += 0.25 * outward[tuft] * radii[tuft, None]

    normal = unit(0.75 * direction + 0.55 * UP + 0.42 * rng.normal(size=(number, 3)))
    along = 0.9 * direction * [1, 0.3, 1] + 0.35 * outward[tuft] + 0.45 * rng.normal(size=(number, 3)) + 0.15 * UP
    along = unit(along - normal * (along * normal).sum(1, keepdims=True))
    size = rng.uniform(0.65, 1.15, number) * (LEAVES / number) ** 0.5
    colour = _leaf_colours(centre, direction, depth, centres[tuft], tuft, rng)
    return _blades(centre, along, normal, size, colour, count, rng)


def hearts(tree: BonsaiTree, count: int, rng: np.random.Generator) -> Surfels:
    """`count` large dark surfels inside the tufts, hardly seen."""
    centres, outward, radii = _tufts(tree, rng)
    tuft = rng.integers(0, len(centres), count)
    radius = radii[tuft, None]
    positions = centres[tuft] + radius * (0.25 * outward[tuft] + 0.16 * rng.normal(size=(count, 3)))
    return round_surfels(positions, radius * rng.uniform(0.16, 0.28, (count, 3)), DEEP, rng)


def _tufts(tree: BonsaiTree, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (T, 3), directions of growth (T, 3) and radii (T,) of leaf tufts: at twig tips and along the twigs."""
    twigs = tree.branches[-1]
    limb = np.arange(len(twigs))
    parts = [twigs.at(limb, np.full(len(twigs), share))[:2] for share in (1.0, 0.55)]
    centres, outward = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    radii = TUFT * np.r_[np.full(len(twigs), 1.0), np.full(len(twigs), 0.72)] * rng.uniform(0.75, 1.2, len(centres))
    return centres, outward, radii


def _shell_directions(count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit directions (N, 3), fewer of them pointing down: pads are clipped flat below."""
    directions = unit(rng.normal(size=(count, 3)))
    flip = (directions[:, 1] < 0) & (rng.random(count) < 0.65)
    directions[:, 1] = np.where(flip, -directions[:, 1], directions[:, 1])
    return directions


def _leaf_colours(
    centre: np.ndarray,
    direction: np.ndarray,
    depth: np.ndarray,
    tuft_centre: np.ndarray,
    tuft: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Deep green inside and below, fresh on top, with yellow-green young tips in some tufts."""
    number = len(centre)
    light = np.clip(0.42 + 0.40 * direction[:, 1] + 0.5 * (depth - 0.75) + 0.20 * rng.normal(size=number), 0, 1)
    light = np.clip(light + 0.9 * (fractal_noise(tuft_centre * 14, 2, 21) - 0.5), 0, 1)
    colour = DEEP + (FRESH - DEEP) * light[:, None]
    vigour = rng.random(tuft.max() + 1)[tuft]
    young = (rng.random(number) < 0.16 * (0.4 + vigour)) & (depth > 0.86) & (direction[:, 1] > 0.1)
    colour += (TIP - colour) * (0.65 * young * rng.random(number))[:, None]
    warmth = rng.normal(size=number) + 1.2 * rng.normal(size=tuft.max() + 1)[tuft]
    hue = 1 + warmth[:, None] * [0.14, 0.05, 0.08]
    return np.clip(colour * hue * rng.uniform(0.85, 1.15, (number, 1)), 0.004, 1)


def _blades(
    centre: np.ndarray,
    along: np.ndarray,
    normal: np.ndarray,
    size: np.ndarray,
    colour: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> Surfels:
    """`count` surfels shared out over folded, pointed blades."""
    number = len(centre)
    leaf = np.arange(count) % number
    each = np.bincount(leaf, minlength=number)[leaf]
    place = (np.arange(count) // number + rng.uniform(0.3, 0.7, count)) / each
    rows = np.sqrt(each * 1.8).clip(1, each)
    a = np.where(each > 1, 2 * place - 1, 0.0) * (1 - 0.45 / rows)
    half = HALF_WIDTH * np.sqrt(np.maximum(1 - np.abs(a) ** 1.7, 0.05)) * (1 - 0.25 * a)
    columns = each / rows
    b = rng.uniform(-1, 1, count) * np.maximum(1 - 1 / columns, 0)

    across = np.cross(normal[leaf], along[leaf])
    scale = size[leaf, None]
    droop = -0.18 * (a + 1) ** 2
    fold = 0.35 * np.abs(b)
    position = centre[leaf] + scale * (
        along[leaf] * (HALF_LENGTH * a)[:, None]
        + across * (half * b)[:, None]
        + normal[leaf] * (HALF_LENGTH * droop + half * fold)[:, None]
    )
    tilted = (
        normal[leaf]
        - across * (0.35 * np.sign(b) * (np.abs(b) > 0.1))[:, None]
        + along[leaf] * (0.3 * (a + 1))[:, None]
    )
    sizes = (
        np.stack([0.62 * HALF_LENGTH / rows**0.9, 0.60 * half / columns**0.8, np.full(count, 0.0005)], axis=1) * scale
    )
    vein = np.exp(-((b / 0.25) ** 2)) * (columns > 2)
    shade = colour[leaf] + (VEIN - colour[leaf]) * (0.35 * vein)[:, None]
    return Surfels.of(
        position,
        along[leaf],
        tilted,
        sizes,
        shade,
        opacities=rng.uniform(0.88, 0.99, count),
        sheen=rng.uniform(0.10, 0.26, count),
        gloss=0.05,
        translucency=0.55,
    )
