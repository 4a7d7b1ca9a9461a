"""A scene as a stand-alone HTML page with a viewer inside: 17 to 19 bytes a Gaussian before they are deflated.

The page itself, and how a scene is packed into it, is in `compress3d/splats/standalone`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from compress3d.splats.scene import SplatScene
from compress3d.splats.standalone.page import GENERATOR, PageScene, read_page, write_fitting_page

_log = logging.getLogger("secateur")


def matches(path: Path, head: bytes) -> bool:
    """Whether a file that begins with `head` is a page that holds scenes."""
    return GENERATOR.encode() in head[:4096]


def read(path: Path) -> SplatScene:
    """The scene that the page shows first: of several, the last.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a page, or damaged.
    """
    return read_page(path)[-1]


def write(scene: SplatScene, path: Path) -> None:
    """Write a page that is called as the file is.

    The order becomes Z-order; spherical harmonics above degree 0 become a palette. Where the page would be too large it
    has few entries or none, which a warning says.

    Raises:
        ValueError: a Gaussian cannot be rendered, or the page would exceed 10 MB.
    """
    whole = PageScene(path.stem, scene)
    (shown,) = write_fitting_page(path, path.stem, [whole])
    if shown is not whole:
        left = f"{shown.entries} sets of harmonics" if shown.scene.sh_degree else "colours of degree 0"
        _log.warning("%s: has only %s: the whole scene is too large for a page", path, left)
