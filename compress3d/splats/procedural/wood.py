"""The wood of a bonsai: an S-shaped trunk, surface roots, three levels of branches, and bark on all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from compress3d.splats.procedural.noise import fractal_noise, smoothstep
from compress3d.splats.procedural.surfels import Surfels, any_tangents
from compress3d.splats.procedural.tree import Bark, BarkSurface, Limbs, curve, fork, grow

GROOVE = np.array([0.030, 0.020, 0.014])
RIDGE = np.array([0.270, 0.185, 0.125])
TWIG = np.array([0.140, 0.085, 0.050])
DEADWOOD = np.array([0.62, 0.54, 0.43])
LICHEN = np.array([0.33, 0.36, 0.24])
MOSS = np.array([0.10, 0.17, 0.03])
GOLDEN_ANGLE = np.pi * (3 - 5**0.5)

TRUNK = np.array(
    [
        [0.030, -0.030, 0.000],
        [0.045, 0.040, 0.008],
        [0.020, 0.110, 0.022],
        [-0.060, 0.190, 0.018],
        [-0.082, 0.270, -0.006],
        [-0.015, 0.345, -0.026],
        [0.048, 0.410, -0.012],
        [0.036, 0.485, 0.014],
        [-0.012, 0.550, 0.012],
        [-0.010, 0.605, 0.000],
    ]
)
TRUNK_RADII = np.array([0.066, 0.060, 0.054, 0.049, 0.043, 0.036, 0.029, 0.022, 0.015, 0.009])


@dataclass(frozen=True, slots=True, eq=False)
class BonsaiTree:
    """The skeleton of a bonsai in a y-up frame, soil at height 0.

    Args:
        trunk: one limb.
        roots: limbs that leave the foot of the trunk and dive into the soil.
        branches: limbs of three levels, coarse to fine.
        buttresses: (R,) angles round the trunk at which the roots leave.
    """

    trunk: Limbs
    roots: Limbs
    branches: tuple[Limbs, ...]
    buttresses: Float[np.ndarray, " R"]

    @classmethod
    def grown(cls, rng: np.random.Generator) -> BonsaiTree:
        """A tree; each state of `rng` gives another."""
        jitter = rng.normal(size=TRUNK.shape) * 0.005
        jitter[:2] = 0
        trunk = curve(TRUNK + jitter, TRUNK_RADII, 96)
        primary = _primary_branches(trunk, rng)
        secondary = fork(
            primary,
            7,
            rng,
            reach=(0.34, 0.98),
            spread=1.15,
            flatness=0.4,
            rise=0.14,
            length=0.52,
            thickness=0.62,
            bend=0.15,
        )
        twigs = fork(
            secondary,
            6,
            rng,
            reach=(0.30, 1.0),
            spread=1.0,
            flatness=0.5,
            rise=0.42,
            length=0.52,
            thickness=0.62,
            bend=0.3,
        )
        angles = np.arange(8) * 2 * np.pi / 8 + rng.normal(size=8) * 0.2
        return cls(trunk, _roots(trunk, angles, rng), (primary, secondary, twigs), angles)


def _primary_branches(trunk: Limbs, rng: np.random.Generator) -> Limbs:
    """Branches that spiral up the trunk, long and drooping below, short and rising at the apex."""
    count, crown = 10, 5
    order = np.linspace(0, 1, count)
    share = np.r_[0.46 + 0.46 * order**0.9, np.full(crown, 0.985)]
    azimuth = np.r_[0.25 + GOLDEN_ANGLE * np.arange(count), 2 * np.pi * np.arange(crown) / crown]
    azimuth += rng.normal(size=count + crown) * 0.12
    rise = np.r_[0.30 + 0.25 * order, np.full(crown, 0.75)]
    length = np.r_[0.34 - 0.20 * order, np.full(crown, 0.085)] * rng.uniform(0.92, 1.08, count + crown)
    bend = np.r_[-0.16 + 0.0 * order, np.full(crown, 0.2)]
    centre, _, radius = trunk.at(np.zeros(count + crown, np.int64), share)
    heading = np.stack([np.cos(azimuth), rise, np.sin(azimuth)], axis=1)
    return grow(
        centre, heading, length, radius * np.r_[np.full(count, 0.40), np.full(crown, 0.6)], rng, knots=14, bend=bend
    )


def _roots(trunk: Limbs, angles: np.ndarray, rng: np.random.Generator) -> Limbs:
    """Roots that leave the foot of the trunk at `angles`, wander over the soil and sink."""
    foot, _, _ = trunk.at(np.zeros(len(angles), np.int64), np.full(len(angles), 0.05))
    outward = np.stack([np.cos(angles), np.full(len(angles), -0.36), np.sin(angles)], axis=1)
    starts = foot * [1, 0, 1] + outward * [0.040, 0.0, 0.040] + [0.0, 0.042, 0.0]
    # The pot is shallower than it is wide, and no root may reach its wall.
    lengths = rng.uniform(0.75, 1.05, len(angles)) * (0.13 + 0.06 * np.abs(np.cos(angles)))
    radii = rng.uniform(0.016, 0.024, len(angles))
    roots = grow(starts, outward, lengths, radii, rng, knots=18, bend=0.22, wander=0.22, taper=0.3)
    falling = 0.048 - 0.072 * np.linspace(0, 1, 18) ** 0.85
    heights = falling + 0.3 * np.clip(roots.centres[..., 1] - falling, -0.05, 0.03)
    return Limbs(np.stack([roots.centres[..., 0], heights, roots.centres[..., 2]], axis=2), roots.radii)


def wood(tree: BonsaiTree, count: int, rng: np.random.Generator) -> Surfels:
    """`count` surfels of bark on trunk, roots and branches."""
    primary, secondary, twigs = tree.branches
    surfaces = [
        (BarkSurface(tree.trunk, 0.20, 0.012, 5.0, 0.55, tree.buttresses, 1), 0.40),
        (BarkSurface(tree.roots, 0.16, 0.010, 2.0, seed=2), 0.12),
        (BarkSurface(primary, 0.14, 0.009, 4.0, seed=3), 0.22),
        (BarkSurface(secondary, 0.10, 0.008, seed=4), 0.14),
        (BarkSurface(twigs, 0.05, 0.006, seed=5), 0.12),
    ]
    sizes = np.diff(np.round(np.cumsum([0.0] + [share for _, share in surfaces]) * count).astype(int))
    parts = []
    for level, ((surface, _), size) in enumerate(zip(surfaces, sizes, strict=True)):
        bark = surface.sample(int(size), rng)
        colours = _bark_colours(bark, level, rng)
        if level == 0:
            colours = _with_deadwood(bark, colours)
        parts.append(_bark_surfels(bark, colours, rng))
    return Surfels.join(parts)


def _bark_colours(bark: Bark, level: int, rng: np.random.Generator) -> np.ndarray:
    ridge = RIDGE + (TWIG - RIDGE) * level / 5
    colours = GROOVE + (ridge - GROOVE) * bark.relief[:, None] ** 1.3
    patches = fractal_noise(bark.positions * 38, 3, 11)[:, None]
    colours = colours * (0.72 + 0.56 * patches)
    lichen = smoothstep(0.60, 0.70, fractal_noise(bark.positions * 55, 3, 12)) * bark.relief * (level < 3)
    colours += (LICHEN - colours) * 0.45 * lichen[:, None]
    # Moss climbs the foot of the trunk and the roots, on the side that faces up or away from the sun.
    shade = 0.5 - 0.5 * bark.normals @ np.array([0.6, -0.6, 0.5])
    low = 1 - smoothstep(0.0, 0.10, bark.positions[:, 1])
    mossy = smoothstep(0.42, 0.60, fractal_noise(bark.positions * 30, 3, 13) * 0.7 + 0.35 * shade * low) * low
    colours += (MOSS - colours) * 0.8 * mossy[:, None]
    return np.clip(colours * rng.uniform(0.88, 1.12, (len(colours), 1)), 0, 1)


def _with_deadwood(bark: Bark, colours: np.ndarray) -> np.ndarray:
    """A bleached strip that winds up the trunk (shari)."""
    centre = 1.15 + 3.6 * bark.share
    away = np.abs((bark.angle - centre + np.pi) % (2 * np.pi) - np.pi)
    width = 0.50 * smoothstep(0.10, 0.22, bark.share) * (1 - smoothstep(0.42, 0.62, bark.share))
    wobble = 0.35 * (fractal_noise(bark.positions * 45, 2, 14) - 0.5)
    strip = (smoothstep(-0.12, 0.05, width - away + wobble) * (width > 0.02))[:, None]
    grain = 0.65 + 0.5 * bark.relief[:, None]
    return colours + (np.clip(DEADWOOD * grain, 0, 1) - colours) * strip


def _bark_surfels(bark: Bark, colours: np.ndarray, rng: np.random.Generator) -> Surfels:
    spread = bark.spacing[:, None] * rng.uniform(0.8, 1.2, (len(bark.spacing), 1))
    return Surfels.of(
        bark.positions,
        bark.tangents,
        bark.normals,
        spread * [1.0, 0.62, 0.14],
        colours,
        opacities=rng.uniform(0.80, 0.99, len(colours)),
        gloss=0.05,
        sheen=0.04,
    )


def heartwood(tree: BonsaiTree, count: int, rng: np.random.Generator) -> Surfels:
    """`count` large surfels along the axis of the trunk, never seen."""
    centre, direction, radius = tree.trunk.at(np.zeros(count, np.int64), 0.04 + 0.9 * rng.random(count))
    sizes = radius[:, None] * [0.60, 0.30, 0.30] * rng.uniform(0.6, 1.0, (count, 1))
    return Surfels.of(
        centre + 0.2 * radius[:, None] * rng.normal(size=centre.shape),
        direction,
        any_tangents(direction),
        sizes,
        0.5 * RIDGE,
        opacities=rng.beta(3, 2, count),
    )
