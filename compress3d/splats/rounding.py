"""What a file's format makes of a scene, as a function that gradients pass straight through.

A recovery that renders through it tunes what will be written, rather than what rounding will then disturb. What it
returns is a fixed point: the format's writer stores it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.splats.formats import spz
from compress3d.splats.formats.codebooks import nearest, scalar_codebook
from compress3d.splats.formats.harmonics import visibility
from compress3d.splats.formats.palette import row_palette
from compress3d.splats.formats.quantization import alphas_from_opacities, opacities_from_bytes, to_levels
from compress3d.splats.formats.sog import default_palette_size
from compress3d.splats.formats.sog_textures import encode_quats, quats_from_texels
from compress3d.splats.scene import SplatScene
from compress3d.suffixes import splat_codec
from secateur.maths import straight_through

Rounding = Callable[[SplatScene], SplatScene]
"""From a scene to the one that a reader of its file gets, differentiable as if it were the same."""


def has_rounding(path: Path) -> bool:
    """Whether `rounding_for` knows the format that `path` names."""
    return (splat_codec(path.name) or "sog") in ("sog", "spz")


def rounding_for(path: Path, scene: SplatScene, **options: Any) -> Rounding:
    """The rounding of the format that `path` names, SOG or SPZ, for scenes like `scene`.

    Args:
        path: of the file that is to be written.
        scene: fixes the codebooks of a SOG.
        options: what will be given to the format's writer.
    """
    return SpzRounding(**options) if splat_codec(path.name) == "spz" else SogRounding(scene, **options)


class SpzRounding:
    """SPZ: all that the format rounds; see `spz.write` for the options."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(self, scene: SplatScene) -> SplatScene:
        with torch.no_grad():
            stored = spz.rounded(scene, **self.options)
        return _straight_through(stored, scene)


class SogRounding:
    """SOG: codebooks and labels are those of one scene, and stay while it is tuned.

    Which entry stands for a value may change, except for harmonics: there the palette itself is tuned. Positions are
    not rounded, because with 16 bits it does not show.

    Args:
        scene: M Gaussians, on the CPU.
        palette_size: as `sog.write` takes it.
    """

    def __init__(self, scene: SplatScene, palette_size: int | None = None) -> None:
        arrays = {name: tensor.detach().numpy() for name, tensor in scene.tensors().items()}
        weights = visibility(arrays)
        self.scales = scalar_codebook(arrays["scales"].reshape(-1), weights=np.repeat(weights, 3))
        self.sh0 = scalar_codebook(arrays["sh0"].reshape(-1), weights=np.repeat(weights, 3))
        self.groups: _Groups | None = None
        if scene.sh_degree:
            rows = arrays["shN"].reshape(len(scene), -1)
            palette, labels = row_palette(rows, palette_size or default_palette_size(len(scene)), weights)
            self.groups = _Groups(torch.from_numpy(labels))
            counts = np.bincount(labels).astype(np.float64)
            self.shN = scalar_codebook(palette.reshape(-1), weights=np.repeat(counts, palette.shape[1]))

    def __call__(self, scene: SplatScene) -> SplatScene:
        arrays = {name: tensor.detach().numpy() for name, tensor in scene.tensors().items()}
        alphas = to_levels(alphas_from_opacities(arrays["opacities"]), 256).astype(np.uint8)
        stored = scene.with_tensors(
            quats=torch.from_numpy(quats_from_texels(encode_quats(arrays["quats"]))),
            scales=_entries(arrays["scales"], self.scales),
            opacities=torch.from_numpy(opacities_from_bytes(alphas)),
            sh0=_entries(arrays["sh0"], self.sh0),
        )
        rounded = _straight_through(stored, scene)
        if self.groups is None:
            return rounded
        shared: Tensor = _Shared.apply(scene.shN, self.groups)
        return rounded.with_tensors(shN=straight_through(_entries(shared.detach().numpy(), self.shN), shared))


class _Groups:
    """Which rows share a palette entry, and how many they are."""

    def __init__(self, labels: Int64[Tensor, " N"]) -> None:
        self.labels, self.counts = labels, torch.bincount(labels)

    def shared(self, rows: Float[Tensor, "N K 3"]) -> Float[Tensor, "N K 3"]:
        """Each row replaced by the mean of its group."""
        sums = rows.new_zeros(len(self.counts), *rows.shape[1:]).index_add_(0, self.labels, rows)
        return (sums / self.counts[:, None, None]).index_select(0, self.labels)


class _Shared(torch.autograd.Function):
    """Rows replaced by the means of their groups: a projection, so its own transpose."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, groups: _Groups) -> Tensor:
        ctx.groups = groups
        return groups.shared(rows)

    @staticmethod
    def backward(ctx: Any, v_rows: Tensor) -> tuple[Tensor, None]:
        return ctx.groups.shared(v_rows), None


def _entries(values: np.ndarray, codebook: np.ndarray) -> Tensor:
    return torch.from_numpy(codebook[nearest(values, codebook)])


def _straight_through(stored: SplatScene, scene: SplatScene) -> SplatScene:
    """The values of `stored` with the gradients of `scene`; rotations in the length and sign that they have there."""
    with torch.no_grad():
        # q and -q are one rotation, but only on the same side do their gradients agree.
        side = torch.where((stored.quats * scene.quats).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
        aligned = stored.quats * side * torch.linalg.vector_norm(scene.quats, dim=1, keepdim=True)
    values = dict(stored.tensors()) | {"quats": aligned}
    return scene.with_tensors(
        **{name: straight_through(values[name], tensor) for name, tensor in scene.tensors().items()}
    )
