"""Folders of small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(
    folder: Path,
    count: int,
    *,
    size: tuple[int, int] = (28, 28),
    channels: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Path:
    """Smooth random pictures; the same seed gives the same ones, to which noise of so many levels is added.

    Args:
        folder: made, with the folders that names have.
        count: of pictures.
        size: height and width.
        channels: 1 or 3.
        noise: standard deviation in levels of 255.
        seed: of the pictures, not of the noise.
        names: of the files; None: 000.png and so on.
    """
    rng, disturbed = np.random.default_rng(seed), np.random.default_rng(1)
    rows, columns = np.indices(size) / max(size)
    for index in range(count):
        waves = [
            np.sin(2 * np.pi * (rng.uniform(-2, 2) * rows + rng.uniform(-2, 2) * columns + rng.random()))
            for _ in range(channels)
        ]
        levels = 127.5 + 100 * np.stack(waves, axis=-1) + noise * disturbed.standard_normal((*size, channels))
        pixels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        file = folder / (f"{index:03d}.png" if names is None else names[index])
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file)
    return folder
