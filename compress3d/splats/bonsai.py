"""A procedural bonsai: a splat scene of any size that needs no download."""

from __future__ import annotations

import numpy as np

from compress3d.splats.procedural.foliage import hearts, leaves
from compress3d.splats.procedural.light import illuminate
from compress3d.splats.procedural.lobes import radiance
from compress3d.splats.procedural.pottery import filling, moss, pebbles, pot, shadow, soil, stand
from compress3d.splats.procedural.surfels import Surfels, to_scene
from compress3d.splats.procedural.training import as_if_trained
from compress3d.splats.procedural.wood import BonsaiTree, heartwood, wood
from compress3d.splats.scene import SplatScene

SHARES = {
    "foliage": 0.48,
    "wood": 0.17,
    "pot": 0.12,
    "soil": 0.05,
    "moss": 0.07,
    "pebbles": 0.01,
    "stand": 0.09,
    "shadow": 0.01,
    "hearts": 0.012,
    "heartwood": 0.003,
    "filling": 0.005,
}
TRAINING_SHARE = 0.20
"""Part of the Gaussians that a better-behaved optimiser would not have left: see `as_if_trained`."""
CENTRE = np.array([0.0, 0.28, 0.0])


def bonsai(count: int = 200_000, seed: int = 0) -> SplatScene:
    """A bonsai in a glazed pot on a wooden stand: trunk and branches with bark, leaf pads, moss, pebbles.

    The scene is y-down (up is -y), about one unit high, centred near the origin, with SH degree 3, and made for a white
    background. It is as redundant as trained scenes are: overlapping layers, near-duplicates, faint haze, oversized
    Gaussians inside, a few floaters. A larger `count` gives the same tree with smaller Gaussians, in linear time.

    Args:
        count: number of Gaussians, at least 1000.
        seed: another seed gives another tree.

    Raises:
        ValueError: `count` is below 1000.
    """
    if count < 1000:
        raise ValueError(f"count must be at least 1000 for a bonsai to be seen in it, got {count}")
    rng = np.random.default_rng(seed)
    tree = BonsaiTree.grown(rng)
    extra = int(TRAINING_SHARE * count)
    sizes = shared_out(count - extra, SHARES)
    clean = Surfels.join(
        [
            leaves(tree, sizes["foliage"], rng),
            wood(tree, sizes["wood"], rng),
            pot(sizes["pot"], rng),
            soil(sizes["soil"], rng),
            moss(sizes["moss"], rng),
            pebbles(sizes["pebbles"], rng),
            stand(sizes["stand"], rng),
        ]
    )
    hidden = [
        hearts(tree, sizes["hearts"], rng),
        heartwood(tree, sizes["heartwood"], rng),
        filling(sizes["filling"], rng),
        shadow(sizes["shadow"], rng),
    ]
    surfels = Surfels.join([as_if_trained(clean, extra, rng), *hidden])
    light = illuminate(surfels, occluders=clean)
    return to_scene(surfels, radiance(surfels, light, rng), CENTRE)


def shared_out(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to `shares` that add up to `total`: the largest remainders are rounded up."""
    exact = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    whole = {name: int(value) for name, value in exact.items()}
    rest = total - sum(whole.values())
    for name in sorted(exact, key=lambda name: whole[name] - exact[name])[:rest]:
        whole[name] += 1
    return whole
