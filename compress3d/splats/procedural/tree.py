"""A fractal tree: a trunk, branches that grow from branches, roots, and points on their bark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from compress3d.splats.procedural.noise import fractal_noise, smoothstep
from compress3d.splats.procedural.surfaces import low_discrepancy
from compress3d.splats.procedural.surfels import any_tangents, unit

UP = np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True, slots=True, eq=False)
class Limbs:
    """B tapering limbs, each a polyline of K knots.

    Args:
        centres: (B, K, 3) knots.
        radii: (B, K) radius at each knot.
    """

    centres: Float[np.ndarray, "B K 3"]
    radii: Float[np.ndarray, "B K"]

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def lengths(self) -> Float[np.ndarray, "B K"]:
        """Arc length up to each knot."""
        steps = np.linalg.norm(np.diff(self.centres, axis=1), axis=2)
        return np.concatenate([np.zeros((len(self), 1)), np.cumsum(steps, axis=1)], axis=1)

    def directions(self) -> Float[np.ndarray, "B K 3"]:
        """Unit direction of growth at each knot."""
        return unit(np.gradient(self.centres, axis=1))

    def sides(self) -> Float[np.ndarray, "B K 3"]:
        """A unit vector across each knot, carried along so that it does not spin about the limb."""
        along = self.directions()
        sides = np.empty_like(along)
        sides[:, 0] = any_tangents(along[:, 0])
        for k in range(1, along.shape[1]):
            before = sides[:, k - 1]
            sides[:, k] = unit(before - along[:, k] * (before * along[:, k]).sum(1, keepdims=True))
        return sides

    def at(self, limb: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre (N, 3), direction (N, 3) and radius (N,) at a share of the knots of a limb, both (N,)."""
        low, weight = _between(share, self.radii.shape[1])
        weight3 = weight[:, None]
        centre = self.centres[limb, low] * (1 - weight3) + self.centres[limb, low + 1] * weight3
        along = self.directions()
        direction = unit(along[limb, low] * (1 - weight3) + along[limb, low + 1] * weight3)
        return centre, direction, self.radii[limb, low] * (1 - weight) + self.radii[limb, low + 1] * weight


def _between(share: np.ndarray, knots: int) -> tuple[np.ndarray, np.ndarray]:
    place = np.clip(share, 0, 1) * (knots - 1)
    low = np.minimum(place.astype(np.int64), knots - 2)
    return low, place - low


def curve(points: np.ndarray, radii: np.ndarray, knots: int) -> Limbs:
    """One limb along a smooth curve through `points` (P, 3) with `radii` (P,)."""
    share = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    share /= share[-1]
    places = np.linspace(0, 1, knots)
    return Limbs(CubicSpline(share, points)(places)[None], np.interp(places, share, radii)[None])


def grow(
    starts: np.ndarray,
    directions: np.ndarray,
    lengths: np.ndarray,
    radii: np.ndarray,
    rng: np.random.Generator,
    *,
    knots: int = 12,
    bend: np.ndarray | float = 0.0,
    wander: float = 0.25,
    taper: float = 0.35,
) -> Limbs:
    """Limbs that grow step by step.

    Args:
        starts, directions: (B, 3).
        lengths, radii: (B,) total length and radius at the start.
        rng: source of the wandering.
        knots: knots of each limb.
        bend: how much the direction turns up (positive) or down over the whole length.
        wander: random turns, as a share of the direction.
        taper: radius at the tip, as a share of that at the start.
    """
    step = (lengths / (knots - 1))[:, None]
    turn = np.broadcast_to(np.asarray(bend), (len(starts),))[:, None] * UP / (knots - 1)
    position, direction = starts.astype(np.float64), unit(directions)
    drift = np.zeros_like(position)
    centres = [position]
    for _ in range(knots - 1):
        drift = 0.6 * drift + rng.normal(size=position.shape) * wander / np.sqrt(knots)
        direction = unit(direction + turn + drift)
        position = position + step * direction
        centres.append(position)
    share = np.linspace(0, 1, knots)
    swelling = 1 + 0.55 * np.exp(-share / 0.06)
    return Limbs(np.stack(centres, axis=1), radii[:, None] * (1 - (1 - taper) * share**0.8) * swelling)


def fork(
    parents: Limbs,
    children: int,
    rng: np.random.Generator,
    *,
    reach: tuple[float, float],
    spread: float,
    flatness: float,
    rise: float,
    length: float,
    thickness: float,
    bend: float,
) -> Limbs:
    """`children` limbs from each parent, alternating sides, one at the tip.

    Args:
        parents: the limbs that fork.
        children: limbs a parent.
        rng: source of jitter.
        reach: share of the parent's length where the first and the last child start.
        spread: angle to the parent in radians, for the first child; the last one follows the parent.
        flatness: share of the parent's slope that children keep; 0 makes flat pads.
        rise: how much children point upwards.
        length: length of the first child as a share of the parent's; later ones are shorter.
        thickness: radius as a share of the parent's radius there.
        bend: see `grow`.
    """
    parent = np.repeat(np.arange(len(parents)), children)
    order = np.tile(np.linspace(0, 1, children), len(parents))
    share = reach[0] + (reach[1] - reach[0]) * order + rng.normal(size=len(parent)) * 0.02
    centre, direction, radius = parents.at(parent, share)
    side = unit(np.cross(UP, direction) + 1e-9)
    sign = np.where(np.tile(np.arange(children), len(parents)) % 2 == 0, 1.0, -1.0)
    angle = sign * spread * (1 - order) ** 0.5 * (1 + 0.2 * rng.normal(size=len(parent)))
    heading = direction * np.cos(angle)[:, None] + side * np.sin(angle)[:, None]
    heading *= [1.0, flatness, 1.0]
    heading += rng.normal(size=heading.shape) * 0.08 + UP * rise * rng.uniform(0.3, 1.0, (len(parent), 1))
    total = parents.lengths[parent, -1] * length * (1 - 0.45 * order) * rng.uniform(0.8, 1.2, len(parent))
    return grow(centre, heading, total, radius * thickness, rng, knots=10, bend=bend)


@dataclass(frozen=True, slots=True, eq=False)
class Bark:
    """Points on the bark of limbs.

    Args:
        limb: (N,) index of the limb.
        share: (N,) place along the limb in [0, 1].
        angle: (N,) place round the limb in radians.
        relief: (N,) 0 in a groove, 1 on a ridge.
        positions, tangents, normals: (N, 3); the tangents run along the limb.
        spacing: (N,) side of the square that each point stands for.
    """

    limb: np.ndarray
    share: np.ndarray
    angle: np.ndarray
    relief: np.ndarray
    positions: np.ndarray
    tangents: np.ndarray
    normals: np.ndarray
    spacing: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class BarkSurface:
    """The surface of limbs: grooves that run along them and twist, and buttresses at the foot.

    Args:
        limbs: the limbs.
        groove: depth of the grooves as a share of the radius.
        grain: grooves are about this wide, in scene units.
        twist: radians that the grooves turn in one unit of length.
        flare: how much the radius grows at the foot, towards `buttresses`.
        buttresses: (R,) angles of the roots.
        seed: of the grooves.
    """

    limbs: Limbs
    groove: float = 0.12
    grain: float = 0.012
    twist: float = 4.0
    flare: float = 0.0
    buttresses: Float[np.ndarray, " R"] | None = None
    seed: int = 0

    def relief(self, limb: np.ndarray, share: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """(N,) 0 in a groove, 1 on a ridge."""
        low, weight = _between(share, self.limbs.radii.shape[1])
        lengths = self.limbs.lengths
        arc = lengths[limb, low] * (1 - weight) + lengths[limb, low + 1] * weight
        radius = self.limbs.radii[limb].mean(1) / self.grain
        turned = angle + self.twist * arc
        place = np.stack([radius * np.cos(turned), radius * np.sin(turned), arc / self.grain / 5 + 17.3 * limb], axis=1)
        ridges = 1 - np.abs(2 * fractal_noise(place, 2, self.seed) - 1)
        flakes = fractal_noise(place * [2.1, 2.1, 6.0], 3, self.seed + 7)
        return np.clip(1 - smoothstep(0.74, 0.98, ridges) - 0.45 * (flakes - 0.35), 0, 1)

    def points(self, limb: np.ndarray, share: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """(N, 3) positions."""
        low, weight = _between(share, self.limbs.radii.shape[1])
        weight3 = weight[:, None]
        along, sides = self.limbs.directions(), self.limbs.sides()
        centre, _, radius = self.limbs.at(limb, share)
        side = unit(sides[limb, low] * (1 - weight3) + sides[limb, low + 1] * weight3)
        forward = unit(along[limb, low] * (1 - weight3) + along[limb, low + 1] * weight3)
        around = side * np.cos(angle)[:, None] + np.cross(forward, side) * np.sin(angle)[:, None]
        radius = radius * (1 + self.groove * (self.relief(limb, share, angle) - 0.6))
        if self.buttresses is not None:
            height = share * self.limbs.lengths[limb, -1]
            lobes = np.exp(12 * (np.cos(angle[:, None] - self.buttresses) - 1)).sum(1)
            radius = radius * (1 + self.flare * (0.2 + lobes) * np.exp(-((height / 0.055) ** 1.3)))
        return centre + around * radius[:, None]

    def sample(self, count: int, rng: np.random.Generator, weight: np.ndarray | None = None) -> Bark:
        """`count` points by area, times `weight` (B,) a limb."""
        lengths, radii = self.limbs.lengths, self.limbs.radii
        area = np.pi * (radii[:, 1:] + radii[:, :-1]) * np.diff(lengths, axis=1)
        density = np.ones(len(self.limbs)) if weight is None else weight
        mass = (area * density[:, None]).ravel()
        upper = np.cumsum(mass)
        picks = low_discrepancy(count, rng)
        segment = np.minimum(np.searchsorted(upper, picks[:, 0] * upper[-1]), len(mass) - 1)
        limb, low = np.divmod(segment, area.shape[1])
        inside = np.clip((picks[:, 0] * upper[-1] - (upper - mass)[segment]) / np.maximum(mass[segment], 1e-12), 0, 1)
        share, angle = (low + inside) / area.shape[1], picks[:, 1] * 2 * np.pi

        du = self.points(limb, np.minimum(share + 1e-3, 1), angle) - self.points(
            limb, np.maximum(share - 1e-3, 0), angle
        )
        dv = self.points(limb, share, angle + 2e-2) - self.points(limb, share, angle - 2e-2)
        return Bark(
            limb,
            share,
            angle,
            self.relief(limb, share, angle),
            self.points(limb, share, angle),
            unit(du),
            unit(np.cross(dv, du)),
            np.sqrt(upper[-1] / count / density[limb]),
        )
