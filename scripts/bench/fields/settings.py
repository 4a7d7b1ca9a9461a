"""What a run of the bench of neural fields measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from compress3d.captures import Capture, read_capture
from compress3d.nerf.bounds import box_of
from compress3d.nerf.train import STEPS, Training

SMALL = Training(
    levels=4,
    features=2,
    log2_table=10,
    lowest_resolution=4,
    highest_resolution=24,
    hidden=16,
    occupancy=16,
    steps_across=64,
    samples=512,
    watch_every=0.5,
)
"""Of a quick run."""


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Args:
        chair: folder of the chair's capture.
        fox: folder of the fox's.
        folder: where the fields that the bench trains are kept, and what is trained of them so far.
        images: folder of the pictures.
        field: a trained field of the chair, for the parts that need one; None: the bench's own.
        steps: of the chair's training.
        quick: small photographs, fields and steps: shows that all runs, its figures mean nothing.
    """

    chair: Path
    fox: Path
    folder: Path
    images: Path
    field: Path | None = None
    steps: int = STEPS
    quick: bool = False

    @cached_property
    def capture(self) -> Capture:
        """The chair's photographs, all of 400x400."""
        return self._read(self.chair, None)

    @cached_property
    def fox_capture(self) -> Capture:
        """The fox's, of 270x480."""
        return self._read(self.fox, 480)

    @cached_property
    def opaque(self) -> Capture:
        """The chair's photographs on white, as if no one knew what is behind it."""
        chair = self.capture
        images = torch.stack([(chair.image(index) * 255 + 0.5).byte() for index in range(len(chair))])
        return replace(chair, images=images, alphas=None)

    @cached_property
    def judging(self) -> list[int]:
        """Photographs that short rows are judged by: every second one of the test split."""
        return self.capture.test.tolist()[::2]

    @property
    def training(self) -> Training:
        """The default recipe."""
        return SMALL if self.quick else Training()

    @cached_property
    def in_box(self) -> Training:
        """The default recipe in the box that the chair's silhouettes leave, which need not be found again."""
        return replace(self.training, box=box_of(self.capture))

    def short(self, steps: int) -> int:
        """So many steps, or the fewest."""
        return 2 if self.quick else steps

    def _read(self, folder: Path, long_side: int | None) -> Capture:
        capture = read_capture(folder, long_side=24 if self.quick else long_side)
        if not self.quick:
            return capture
        return capture.subset(torch.cat([capture.train[:6], capture.test[:2]]))
