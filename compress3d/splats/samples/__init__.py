"""Scenes that come with the package: a chair that was trained from photographs (README.md says how)."""

from __future__ import annotations

from pathlib import Path

from compress3d.splats.formats import read_scene
from compress3d.splats.scene import SplatScene

CHAIR = Path(__file__).with_name("chair.sog")
"""The chair's file."""


def chair() -> SplatScene:
    """A chair of 38,893 Gaussians, SH degree 2, y-down, 2 world units high, made for a white background."""
    return read_scene(CHAIR)
