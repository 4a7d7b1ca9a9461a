"""A scene as a stand-alone HTML page with a viewer inside: 17 bytes a Gaussian before they are deflated, degree 0 only.

The page itself, and how a scene is packed into it, is in `compress3d/splats/standalone`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from compress3d.splats.scene import SplatScene
from compress3d.splats.standalone.page import GENERATOR, PageScene, read_page, write_page

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

    Spherical harmonics above degree 0 are left out, with a warning; the order becomes Z-order.

    Raises:
        ValueError: a Gaussian cannot be rendered, or the page would exceed 10 MB.
    """
    if scene.sh_degree:
        _log.warning("%s: a page shows no spherical harmonics above degree 0; they are left out", path)
    write_page(path, path.stem, [PageScene(path.stem, scene)])
