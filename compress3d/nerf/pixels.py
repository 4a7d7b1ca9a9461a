"""Random pixels of posed photographs: the rays through them, and the colours that they should have.

What is random is drawn on the CPU, so that it is the same on every device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.rays import Box, Rays, rays_through


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """R pixels of a capture, on its photographs' device.

    Args:
        capture: the photographs.
        views: (R,) indices of photographs.
        rows: (R,) of the pixels.
        columns: (R,) of the pixels.
    """

    capture: Capture
    views: Int64[Tensor, " R"]
    rows: Int64[Tensor, " R"]
    columns: Int64[Tensor, " R"]

    def __len__(self) -> int:
        return len(self.views)

    def rays(self, box: Box) -> Rays:
        """Through their centres."""
        return rays_through(self.capture.cameras, self.views, self.rows, self.columns, box)

    def backgrounds(self, random: torch.Generator | None) -> Float[Tensor, "R 3"]:
        """A random colour each, where the photographs have alpha and `random` is given; else the capture's."""
        if self.capture.alphas is None or random is None:
            return torch.tensor(self.capture.background, device=self.views.device).expand(len(self), 3)
        return torch.rand(len(self), 3, generator=random).to(self.views.device)

    def colors(self, backgrounds: Float[Tensor, "R 3"]) -> Float[Tensor, "R 3"]:
        """As photographed, in front of `backgrounds`, 0 to 1."""
        at = (self.views, self.rows, self.columns)
        colors = self.capture.images[at].float() / 255
        if self.capture.alphas is None:
            return colors
        return torch.lerp(backgrounds, colors, self.capture.alphas[at].float()[:, None] / 255)

    def weights(self) -> Float[Tensor, "R 1"]:
        """How much each counts, 0 to 1."""
        if self.capture.masks is None:
            return torch.ones(len(self), 1, device=self.views.device)
        return self.capture.masks[self.views, self.rows, self.columns].float()[:, None] / 255


def draw_pixels(capture: Capture, views: Int64[Tensor, " V"], count: int, random: torch.Generator) -> Pixels:
    """`count` pixels, uniformly, of the photographs at `views`."""
    width, height = capture.cameras.width, capture.cameras.height
    device = capture.images.device
    drawn = torch.randint(len(views) * height * width, (count,), generator=random).to(device)
    rows = drawn // width
    return Pixels(capture, views.to(device)[rows // height], rows % height, drawn % width)


def on_device(capture: Capture, device: torch.device) -> Capture:
    """A capture whose photographs and cameras are on `device`."""
    if device == capture.images.device:
        return capture
    cameras = replace(capture.cameras, viewmats=capture.cameras.viewmats.to(device), Ks=capture.cameras.Ks.to(device))
    alphas, masks = (None if tensor is None else tensor.to(device) for tensor in (capture.alphas, capture.masks))
    return replace(capture, cameras=cameras, images=capture.images.to(device), alphas=alphas, masks=masks)
