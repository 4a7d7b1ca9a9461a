"""What the tree stands in and on: a glazed pot, its soil, moss and pebbles, a wooden stand and its soft shadow."""

from __future__ import annotations

import numpy as np

from compress3d.splats.procedural.noise import fractal_noise, smoothstep
from compress3d.splats.procedural.surfaces import Samples, Turned, ellipsoids, rounded, sample
from compress3d.splats.procedural.surfels import Surfels, any_tangents, round_surfels, unit

HALF_WIDTH, HALF_DEPTH, CORNERS = 0.285, 0.200, 3.6
STAND_WIDTH, STAND_DEPTH = 0.365, 0.265
FOOT = -0.155
GLAZE_DEEP = np.array([0.008, 0.070, 0.110])
GLAZE_LIGHT = np.array([0.050, 0.250, 0.290])
GLAZE_BREAK = np.array([0.290, 0.200, 0.105])
CLAY = np.array([0.150, 0.075, 0.045])
SOIL = np.array([0.085, 0.052, 0.032])
GRIT = np.array([0.26, 0.17, 0.095])
MOSS_DEEP = np.array([0.030, 0.075, 0.010])
MOSS_FRESH = np.array([0.190, 0.300, 0.035])
ROSEWOOD = np.array([0.018, 0.007, 0.005])
ROSEWOOD_LIGHT = np.array([0.080, 0.030, 0.015])

POT_PROFILE = np.array(
    [
        [0.02, -0.138],
        [0.78, -0.138],
        [0.83, -0.132],
        [0.86, -0.115],
        [0.915, -0.060],
        [0.950, -0.025],
        [0.952, -0.013],
        [0.975, -0.011],
        [1.005, -0.006],
        [1.012, 0.006],
        [1.002, 0.014],
        [0.955, 0.014],
        [0.925, 0.009],
        [0.905, -0.012],
        [0.895, -0.045],
    ]
)


def _surfels(
    points: Samples, colours: np.ndarray, rng: np.random.Generator, *, gloss: np.ndarray | float = 0.0
) -> Surfels:
    spacing = np.minimum(points.spacing, 2.5 * np.median(points.spacing))
    size = spacing * rng.uniform(0.70, 1.0, (len(points.u), 1)) * rng.uniform(0.9, 1.1, (len(points.u), 2))
    # Along an edge nothing bends, and longer Gaussians make it straight.
    size *= np.where(size > 1.3 * size[:, ::-1], 1.45, 1.0)
    sizes = np.concatenate([size, 0.12 * size.min(1, keepdims=True)], axis=1)
    return Surfels.of(
        points.positions,
        points.tangents,
        points.normals,
        sizes,
        colours,
        opacities=rng.uniform(0.85, 0.995, len(colours)),
        gloss=gloss,
    )


def pot(count: int, rng: np.random.Generator) -> Surfels:
    """`count` surfels of a rounded rectangular pot with a lip and four feet, in a glaze that breaks at the edges."""
    body = Turned(HALF_WIDTH, HALF_DEPTH, CORNERS, rounded(POT_PROFILE, 2))
    feet = count // 12
    # The bottom and the inside of the wall are hardly seen, so they get fewer points.
    points = sample(body, count - feet, rng, lambda p: np.where((p[:, 1] < -0.1375) | (p[:, 1] > 0.0145), 0.25, 1.0))
    edge = smoothstep(0.008, 0.015, points.positions[:, 1]) + np.exp(-(((points.positions[:, 1] + 0.013) / 0.004) ** 2))
    foot_line = 1 - smoothstep(-0.132, -0.118, points.positions[:, 1] + 0.006 * (_noise(points, 30, 31) - 0.5))
    return Surfels.join(
        [
            _surfels(points, _glaze(points, np.clip(edge, 0, 1), foot_line), rng, gloss=1.2 * (1 - 0.8 * foot_line)),
            _feet(feet, rng),
        ]
    )


def _noise(points: Samples, frequency: float, seed: int) -> np.ndarray:
    return fractal_noise(points.positions * frequency, 3, seed)


def _glaze(points: Samples, edge: np.ndarray, foot_line: np.ndarray) -> np.ndarray:
    """Blue-green that runs down in streaks, thin and brown at the edges, bare clay at the foot."""
    streaks = fractal_noise(points.positions * [42, 7, 42], 3, 32)
    depth = np.clip(0.15 + 1.1 * (streaks - 0.25) + 2.2 * (points.positions[:, 1] + 0.06), 0, 1)
    colours = GLAZE_DEEP + (GLAZE_LIGHT - GLAZE_DEEP) * depth[:, None]
    speckles = smoothstep(0.72, 0.78, _noise(points, 230, 33))[:, None]
    colours *= 1 - 0.55 * speckles
    broken = edge * smoothstep(0.25, 0.6, _noise(points, 60, 34) + 0.15)
    colours += (GLAZE_BREAK - colours) * (0.75 * broken)[:, None]
    return colours + (CLAY * (0.8 + 0.4 * _noise(points, 150, 35)[:, None]) - colours) * foot_line[:, None]


def filling(count: int, rng: np.random.Generator) -> Surfels:
    """`count` large round surfels that fill the inside of the pot, never seen."""
    reach, angle = np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    height = rng.uniform(-0.105, -0.055, count)
    positions = np.stack([reach * np.cos(angle) * 0.19, height, reach * np.sin(angle) * 0.12], axis=1)
    size = rng.uniform(0.008, 0.016, (count, 1)) * rng.uniform(0.7, 1.0, (count, 3))
    return round_surfels(positions, size, SOIL, rng)


def _feet(count: int, rng: np.random.Generator) -> Surfels:
    profile = rounded(np.array([[0.05, FOOT], [0.80, FOOT], [0.90, FOOT + 0.004], [1.0, -0.134], [0.05, -0.134]]), 2)
    parts = []
    for number, (x, z) in enumerate([(-1, -1), (-1, 1), (1, -1), (1, 1)]):
        centre = (x * 0.66 * HALF_WIDTH, 0.0, z * 0.62 * HALF_DEPTH)
        size = count // 4 + (number < count % 4)
        points = sample(Turned(0.052, 0.034, 5.0, profile, centre), size, rng)
        parts.append(_surfels(points, CLAY * (0.8 + 0.4 * _noise(points, 150, 35)[:, None]), rng, gloss=0.15))
    return Surfels.join(parts)


def _bumps(points: np.ndarray) -> np.ndarray:
    return fractal_noise(points * [22, 0, 22], 3, 36)


def _ground() -> Turned:
    """The soil: a low mound inside the pot."""
    radius = np.linspace(0.895, 0.01, 24)
    height = -0.012 + 0.018 * (1 - radius**2)
    return Turned(HALF_WIDTH, HALF_DEPTH, CORNERS, np.stack([radius, height], axis=1), (0, 0, 0), 0.016, _bumps)


def _mossiness(points: np.ndarray) -> np.ndarray:
    """(N,) 0 bare soil to 1 moss: patches, more of them towards the trunk."""
    near = np.exp(-((points[:, 0] - 0.03) ** 2 + points[:, 2] ** 2) / 0.03)
    return smoothstep(0.42, 0.52, fractal_noise(points * [11, 0, 11], 3, 37) + 0.12 * near)


def soil(count: int, rng: np.random.Generator) -> Surfels:
    """`count` surfels of dark soil with lighter grit."""
    points = sample(_ground(), count, rng, lambda p: 1 - 0.7 * _mossiness(p))
    grain = fractal_noise(points.positions * 260, 2, 38)
    colours = SOIL + (GRIT - SOIL) * (0.8 * smoothstep(0.55, 0.75, grain))[:, None]
    surfels = _surfels(points, colours * rng.uniform(0.6, 1.4, (count, 1)), rng)
    bumpy = unit(surfels.normals + 0.35 * rng.normal(size=(count, 3)))
    return Surfels.of(
        surfels.positions, surfels.tangents, bumpy, surfels.sizes, surfels.colours, opacities=surfels.opacities
    )


def moss(count: int, rng: np.random.Generator) -> Surfels:
    """`count` surfels of moss cushions: short upright threads over a soft mat."""
    points = sample(_ground(), count, rng, lambda p: _mossiness(p) ** 2 + 1e-4)
    cover = _mossiness(points.positions)
    cushion = fractal_noise(points.positions * [60, 0, 60], 2, 39)
    thread = rng.random(count)
    height = cover * (0.004 + 0.016 * cushion**1.5) * (0.55 + 0.45 * thread)
    lean = unit(points.normals + 0.45 * rng.normal(size=(count, 3)))
    upright = (rng.random(count) < 0.7)[:, None]
    across = any_tangents(lean)
    spacing = points.spacing.min(1, keepdims=True)
    size = np.minimum(spacing, 1.6 * np.median(spacing)) * rng.uniform(0.8, 1.2, (count, 1))
    colours = MOSS_DEEP + (MOSS_FRESH - MOSS_DEEP) * np.clip(0.9 * cushion + 0.5 * (thread - 0.35), 0, 1)[:, None]
    return Surfels.of(
        points.positions + points.normals * height[:, None],
        np.where(upright, lean, points.tangents),
        np.where(upright, across, points.normals),
        np.where(upright, size * [1.25, 0.50, 0.50], size * [0.95, 0.95, 0.3]),
        colours * (1 + rng.normal(size=(count, 1)) * [0.12, 0.06, 0.12]),
        opacities=rng.uniform(0.6, 0.97, count),
        fuzz=rng.uniform(0.25, 0.55, count),
        translucency=0.3,
    )


def pebbles(count: int, rng: np.random.Generator) -> Surfels:
    """`count` surfels of pebbles, most of them along the front edge of the pot."""
    number = 34
    angle = rng.uniform(0, 2 * np.pi, number)
    place = 0.58 + 0.26 * rng.random(number)
    flat = _ground()
    centres = flat(np.clip(1 - place / 0.895, 0, 1), (angle / (2 * np.pi)) % 1)
    half = rng.uniform(0.005, 0.013, (number, 1)) * rng.uniform([0.8, 0.5, 0.8], [1.3, 0.75, 1.3], (number, 3))
    which, positions, normals, spacing = ellipsoids(centres + np.array([0, 0.003, 0]), half, count, rng)
    tone = rng.uniform(0.16, 0.62, (number, 1)) * rng.uniform([0.95, 0.92, 0.85], [1.05, 1.0, 1.0], (number, 3))
    colours = tone[which] * (0.75 + 0.5 * fractal_noise(positions * 170, 3, 40)[:, None])
    sizes = spacing[:, None] * [0.95, 0.95, 0.2]
    return Surfels.of(positions, any_tangents(normals), normals, sizes, np.clip(colours, 0, 1), gloss=0.25)


def stand(count: int, rng: np.random.Generator) -> Surfels:
    """`count` surfels of a low wooden stand with an apron and four feet."""
    top = FOOT - 0.002
    slab = np.array(
        [
            [0.02, -0.026],
            [0.90, -0.026],
            [0.93, -0.020],
            [0.955, -0.016],
            [1.0, -0.013],
            [1.0, -0.002],
            [0.985, 0.0],
            [0.02, 0.0],
        ]
    )
    body = Turned(STAND_WIDTH, STAND_DEPTH, 6.0, rounded(slab + np.array([0, top]), 2))
    under = count // 5
    points = sample(body, count - 2 * under, rng, _seen)
    parts = [_wooden(points, rng)]
    leg = rounded(
        np.array([[0.05, -0.052], [0.78, -0.052], [0.86, -0.048], [0.90, -0.036], [1.0, -0.024], [0.05, -0.024]])
        + np.array([0, top]),
        2,
    )
    for number, (x, z) in enumerate([(-1, -1), (-1, 1), (1, -1), (1, 1)]):
        size = 2 * under // 4 + (number < (2 * under) % 4)
        parts.append(_wooden(sample(Turned(0.055, 0.045, 5.0, leg, (x * 0.285, 0.0, z * 0.195)), size, rng), rng))
    return Surfels.join(parts)


def _seen(points: np.ndarray) -> np.ndarray:
    """(N,) less where the stand is looked at least: below it, and under the pot."""
    under_pot = (np.abs(points[:, ::2]) < [0.20, 0.13]).all(1)
    return np.where((points[:, 1] < FOOT - 0.0275) | under_pot, 0.2, 1.0)


def _wooden(points: Samples, rng: np.random.Generator) -> Surfels:
    warp = points.positions * [1.6, 8, 8] + 0.2 * fractal_noise(points.positions * 5, 2, 41)[:, None]
    rings = 0.5 + 0.5 * np.sin(40 * fractal_noise(warp, 2, 42) + 60 * points.positions[:, 2])
    pores = fractal_noise(points.positions * [22, 300, 300], 2, 43)
    colours = ROSEWOOD + (ROSEWOOD_LIGHT - ROSEWOOD) * (0.85 * rings**1.5)[:, None]
    surfels = _surfels(points, colours * (0.7 + 0.55 * pores[:, None]), rng, gloss=0.25)
    # On the flat faces, away from their edges, the Gaussians lie along the grain.
    inside = (np.abs(points.positions[:, ::2]) / [STAND_WIDTH, STAND_DEPTH] < 0.9).all(1)
    flat = (inside & (np.abs(points.normals[:, 1]) > 0.98))[:, None]
    grain = surfels.sizes[:, :2].mean(1, keepdims=True) * np.array([1.5, 0.7, 0.12])
    return Surfels.of(
        surfels.positions,
        np.where(flat, [1.0, 0.0, 0.0], surfels.tangents),
        surfels.normals,
        np.where(flat, grain, surfels.sizes),
        surfels.colours,
        opacities=surfels.opacities,
        gloss=surfels.gloss,
    )


def shadow(count: int, rng: np.random.Generator) -> Surfels:
    """`count` wide, faint surfels on the ground: the stand's contact shadow, darkest below it and away from the sun."""
    reach = np.sqrt(rng.random(count))
    angle = rng.uniform(0, 2 * np.pi, count)
    half = np.array([0.45, 0.34])
    flat = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None] * half - [0.035, 0.025]
    positions = np.stack([flat[:, 0], np.full(count, FOOT - 0.057), flat[:, 1]], axis=1)
    size = 0.055 * (2000 / count) ** 0.25
    depth = 0.85 * (1 - smoothstep(0.55, 1.0, reach))
    opacities = depth * np.pi * half.prod() / count / (2 * np.pi * size**2)
    up = np.broadcast_to([0.0, 1.0, 0.0], positions.shape)
    sizes = np.full((count, 3), size) * [1, 1, 0.01]
    return Surfels.of(
        positions,
        any_tangents(up),
        up,
        sizes,
        np.array([0.010, 0.010, 0.012]),
        opacities=np.clip(opacities, 0.004, 0.5),
    )
