"""What is each face worth, as the silhouettes of an object in posed views tell it?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.captures import Capture
from compress3d.mesh.mesh import FACES, Mesh
from compress3d.mesh.silhouette import coverage_in, shown_whole
from secateur.units import Scores

LEAST_FOOTPRINT = 1e-3
"""Pixels that a face must cover in a view, all in all, to be seen there."""


@dataclass(frozen=True, slots=True, eq=False)
class Silhouettes:
    """Which pixels of C posed views show the object.

    Args:
        cameras: C cameras.
        alphas: (C, H, W) 1 where the object is, 0 where it is not; finite.

    Raises:
        ValueError: shapes do not fit, or an alpha is out of [0, 1].
    """

    cameras: Cameras
    alphas: Float[Tensor, "C H W"]

    def __post_init__(self) -> None:
        wanted = (len(self.cameras), self.cameras.height, self.cameras.width)
        if tuple(self.alphas.shape) != wanted:
            raise ValueError(f"alphas must be {wanted}, got {tuple(self.alphas.shape)}")
        wrong = int((~((self.alphas >= 0) & (self.alphas <= 1))).sum())
        if wrong:
            raise ValueError(f"alphas must be in [0, 1], but {wrong} of {self.alphas.numel()} are not")

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, index: slice | Tensor) -> Self:
        """Some of the views."""
        return replace(self, cameras=self.cameras[index], alphas=self.alphas[index])

    @classmethod
    def of(cls, capture: Capture, index: Tensor | None = None) -> Self:
        """Of the photographs at `index` (int64), or of those to train on.

        Raises:
            ValueError: the photographs have no alpha, so that nothing tells the object from what is behind it.
        """
        if capture.alphas is None:
            raise ValueError(f"capture {capture.name!r} has no alpha; silhouettes need photographs cut out (RGBA)")
        index = capture.train if index is None else index
        return cls(capture.cameras[index], capture.alphas[index].float() / 255)


@dataclass(frozen=True)
class SilhouetteCoverage:
    """Share of a face's soft footprint inside the silhouettes: 1 inside, 0 outside, in the view that says least.

    Landreau and Tamaazousti, Pruning-based Topology Refinement of 3D Mesh using a 2D Alpha Mask (arXiv 2210.09148):
    score(view) = sum over pixels of D alpha / sum of D, with D the face's soft coverage (`soft_silhouettes`). The paper
    sets no rule for several views. Whatever is outside one silhouette is no part of the object, so the least score of
    all views counts, but for the share `tolerated` of them; faces on the rim of a true surface have about 0.5 there.
    A view says nothing of a face that it does not show whole.

    Args:
        sigma: softness in square pixels; pixels that only a face's edge meets still count for it.
        tolerated: share of the views that see a face, which may say that it is outside; 0.5 is the median, 1 the best.
    """

    sigma: float = 1.0
    tolerated: float = 0.0

    def __post_init__(self) -> None:
        if not self.sigma > 0 or not 0 <= self.tolerated <= 1:
            raise ValueError(f"sigma > 0 and tolerated in [0, 1] are needed, got {self.sigma} and {self.tolerated}")

    def score(self, target: Mesh, calibration: Silhouettes | None = None) -> Scores:
        """(F,) float32 in [0, 1]; 0 for what no view shows whole.

        Raises:
            ValueError: there are no silhouettes.
        """
        if calibration is None or not len(calibration):
            raise ValueError("silhouette coverage needs silhouettes: give Silhouettes of at least one view")
        return {FACES: self.over_views(shares_inside(target, calibration, self.sigma))}

    def over_views(self, shares: Float[Tensor, "C F"]) -> Float[Tensor, " F"]:
        """One score a face, from its score in each view (NaN where that says nothing); 0 where all are NaN."""
        ordered = torch.where(torch.isnan(shares), torch.inf, shares).sort(dim=0).values
        seen = (~torch.isnan(shares)).sum(dim=0)
        place = ((seen - 1).clamp_min(0) * self.tolerated).floor().long()
        return torch.where(seen > 0, ordered.gather(0, place[None])[0], 0.0)


def shares_inside(mesh: Mesh, silhouettes: Silhouettes, sigma: float = 1.0) -> Float[Tensor, "C F"]:
    """sum of D alpha / sum of D for each view and face, float32; NaN where a view does not show the whole face."""
    rows = []
    for index, alpha in enumerate(silhouettes.alphas):
        camera = silhouettes.cameras[index]
        inside, footprint = coverage_in(mesh, camera, alpha, sigma)
        # Of a face beyond the image's edge only the outer part of its softness is in the image, and that is no part
        # of any object.
        seen = (footprint > LEAST_FOOTPRINT) & shown_whole(mesh, camera).cpu()
        share = (inside / torch.where(seen, footprint, 1.0)).clamp(0, 1)
        rows.append(torch.where(seen, share, torch.nan).float())
    return torch.stack(rows)
