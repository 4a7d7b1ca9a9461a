"""New Gaussians on a baked surface, where an error map asks for them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.splats.baking.maps import BakedScene
from compress3d.splats.scene import SplatScene


def resample(baked: BakedScene, density: Float[Tensor, "*L H W"], count: int, seed: int = 0) -> SplatScene:
    """FATE's sampling-based densification (arXiv 2411.15604): places drawn in UV in proportion to an error map.

    A place is uniform within the texel that is drawn; its attributes are looked up between the texels around.

    Args:
        baked: L layers of H x W texels.
        density: (L, H, W), or (H, W) for all layers: what is wrong at each texel, not negative, in any unit. Texels
            that hold no Gaussian are never drawn.
        count: how many Gaussians.
        seed: the same one gives the same places.

    Returns:
        The `count` new ones alone.

    Raises:
        ValueError: the density does not fit the maps, is negative, not finite, or 0 wherever a Gaussian is.
    """
    if tuple(density.shape) not in (tuple(baked.mask.shape), tuple(baked.mask.shape[1:])):
        raise ValueError(f"density must be {tuple(baked.mask.shape)} or one layer of it, got {tuple(density.shape)}")
    share = density.double().expand(baked.mask.shape)[baked.mask].cumsum(dim=0)
    if count < 1 or not (density >= 0).all() or not 0 < float(share[-1]) < torch.inf:
        raise ValueError(f"count must be at least 1, got {count}; density finite, not negative, above 0 on a Gaussian")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64) * share[-1]
    texels = torch.searchsorted(share, drawn.clamp_max(torch.nextafter(share[-1], share[0] * 0)), right=True)
    # A hair short of a texel's width, so that rounding never leads into the next, which may be empty.
    within = (torch.rand(count, 2, generator=generator, dtype=torch.float64) - 0.5) * (1 - 1e-9)
    size = torch.tensor([baked.mask.shape[2], baked.mask.shape[1]], dtype=torch.float64)
    return baked.sample(baked.centers()[texels] + within / size, baked.mask.nonzero()[texels, 0])[0]
