"""What a run of the bench of meshes measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compress3d.captures import Capture, read_capture

LOW, HIGH = (-1.2,) * 3, (1.2,) * 3
"""The space in which the chair is, in world units."""


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Args:
        folder: of the chair's capture.
        images: folder of the pictures.
        quick: small pictures and grids: shows that all runs, its figures mean nothing.
    """

    folder: Path
    images: Path
    quick: bool = False

    @cached_property
    def capture(self) -> Capture:
        """The photographs, small ones in a quick run."""
        return read_capture(self.folder, long_side=64 if self.quick else None)

    @property
    def resolution(self) -> int:
        """Grid points of the visual hull along each axis."""
        return 32 if self.quick else 128

    @property
    def points(self) -> int:
        """On each surface, for the distance between two."""
        return 2_000 if self.quick else 100_000
