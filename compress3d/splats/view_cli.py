"""What `secateur splat view` does."""

from __future__ import annotations

import os
import sys
import threading
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from compress3d.cameras import Cameras
from compress3d.splats.evaluate import SceneFile
from compress3d.splats.formats import read_scene
from compress3d.splats.viewer.server import Shown, SplatViewer, import_viser
from compress3d.splats.views import AXES
from secateur.console import console, messages


@dataclass(frozen=True, slots=True)
class Viewing:
    """What was looked at, where, and for how long in seconds."""

    files: tuple[SceneFile, ...]
    url: str
    seconds: float


def view_file(
    file: Path,
    against: Path | None,
    cameras: Path | None,
    up: str,
    max_gaussians: int,
    host: str,
    port: int,
    no_open: bool,
    spz_axes: str | None,
) -> Viewing:
    """`secateur splat view`: serves the scene until Ctrl-C."""
    import_viser()
    started = time.monotonic()
    views = None if cameras is None else Cameras.load(cameras)
    shown = _shown(file, max_gaussians, spz_axes)
    twin = None if against is None else _shown(against, max_gaussians, None)
    viewer = SplatViewer(shown, twin, views, AXES[up], host, port)
    try:
        messages.print(f"{viewer.url}  (Ctrl-C ends it)", highlight=False, markup=False)
        if not no_open and _has_screen():
            webbrowser.open(viewer.url)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        viewer.close()
    files = tuple(one.file for one in (shown, twin) if one is not None)
    return Viewing(files, viewer.url, time.monotonic() - started)


def show_viewing(viewing: Viewing) -> None:
    """A line at the end."""
    names = " and ".join(file.name for file in viewing.files)
    console.print(f"closed {names} after {viewing.seconds:.0f} s", highlight=False, markup=False)


def _shown(path: Path, most: int, spz_axes: str | None) -> Shown:
    scene = read_scene(path, spz_axes=spz_axes)
    if not len(scene):
        raise ValueError(f"{path}: there is nothing to see: the scene has no Gaussians")
    shown = Shown(SceneFile.describe(path, scene), scene).capped(most)
    if len(shown.scene) < len(scene):
        messages.print(
            f"{path}: {len(scene):,} Gaussians, of which the {most:,} most visible are drawn (--max-gaussians)",
            highlight=False,
            markup=False,
        )
    return shown


def _has_screen() -> bool:
    """Whether a browser would open in a window, rather than in the terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
