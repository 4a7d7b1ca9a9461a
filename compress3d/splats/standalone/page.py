"""Writes and reads the page: everything is inside it, and it may not ask the network for anything."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from compress3d.splats.formats.sanitize import require_valid
from compress3d.splats.scene import SplatScene
from compress3d.splats.standalone.packing import Ranges, pack, unpack
from compress3d.splats.viewpoint import viewpoint
from compress3d.splats.views import UP, Vector
from secateur.files import replacing_file
from secateur.quantities import format_bytes

GENERATOR = "secateur splat page 2"
"""What the head of a page says made it: the version is that of the packing."""

LIMIT_BYTES = 10_000_000
"""Pages are kept below this, so that they open on a phone and fit into an e-mail."""

_FEW_ENTRIES = 256
"""Sets of harmonics that one byte can name."""

_SCRIPTS = ("decode.js", "renderer.js", "camera.js", "page.js")
_TAG = r'<script type="application/octet-stream" id="scene-\d+">'


class TooLargeError(ValueError):
    """The scenes make a page above the limit."""


@dataclass(frozen=True, eq=False)
class PageScene:
    """A scene of a page.

    Args:
        name: on its button, where there are several.
        scene: at least one Gaussian.
        note: a few words under the title while it is shown; None counts the Gaussians.
        entries: the most sets of harmonics above degree 0; None: see `pack`.
    """

    name: str
    scene: SplatScene
    note: str | None = None
    entries: int | None = None

    @cached_property
    def leaner(self) -> tuple[PageScene, ...]:
        """The same with ever less of its harmonics: as it is, with few sets of them, with none; notes say so."""
        if not self.scene.sh_degree:
            return (self, self, self)
        few = replace(self, entries=_FEW_ENTRIES, note=f"{self.told}, {_FEW_ENTRIES} sets of harmonics")
        none = replace(self, scene=self.scene.with_sh_degree(0), note=f"{self.told}, colours of degree 0")
        return self, few, none

    @property
    def told(self) -> str:
        """The words under the title."""
        return self.note or f"{len(self.scene):,} Gaussians"

    @cached_property
    def packed(self) -> tuple[Ranges, bytes]:
        """As `pack` gives it; raises ValueError if a Gaussian cannot be rendered."""
        require_valid(self.scene)
        return pack(self.scene, self.entries)


def write_page(
    path: str | os.PathLike[str],
    title: str,
    scenes: Sequence[PageScene],
    up: Vector = UP,
    limit_bytes: int = LIMIT_BYTES,
) -> Path:
    """Write one HTML page that shows the scenes, one at a time, the last one first; returns its path.

    Args:
        path: replaced only when all is written.
        title: of the page.
        scenes: at least one; they share the camera, which starts where the first is seen well.
        up: world direction that is up.
        limit_bytes: of the page.

    Raises:
        ValueError: a Gaussian cannot be rendered, or there is nothing to show.
        TooLargeError: the page would be too large: the message says how many Gaussians would fit.
    """
    target = Path(path)
    if not scenes or not all(len(one.scene) for one in scenes):
        raise ValueError(f"{target}: there is nothing to show: each scene of a page needs a Gaussian")
    text = _render(title, scenes, up).encode("utf-8")
    if len(text) > limit_bytes:
        raise TooLargeError(f"{target}: {_too_large(scenes, len(text), limit_bytes)}")
    with replacing_file(target) as temporary:
        temporary.write_bytes(text)
    return target


def write_fitting_page(
    path: str | os.PathLike[str], title: str, scenes: Sequence[PageScene], up: Vector = UP
) -> tuple[PageScene, ...]:
    """Write a page with as much of the scenes' harmonics as fits, the same for all; returns the scenes as written.

    Args:
        path, title, scenes, up: as for `write_page`.

    Raises:
        ValueError: as for `write_page`.
        TooLargeError: the page would be too large without harmonics.
    """
    for shown in dict.fromkeys(zip(*(one.leaner for one in scenes), strict=True)):
        try:
            write_page(path, title, shown, up)
            return shown
        except TooLargeError as error:
            too_large = error
    raise too_large


def read_page(path: str | os.PathLike[str]) -> list[SplatScene]:
    """The scenes of a page, in order, as its viewer decodes them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a page, or damaged.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    if GENERATOR not in text[:4096]:
        raise ValueError(f"{path}: not a page that secateur wrote a scene into ({GENERATOR!r} is not in its head)")
    try:
        record = re.search(r'<script type="application/json" id="page">(.*?)</script>', text, re.DOTALL)
        data = re.findall(_TAG + r"([A-Za-z0-9+/=\s]*)</script>", text)
        described = json.loads(record[1])["scenes"] if record else []
        if not described or len(described) != len(data):
            raise ValueError(f"{len(described)} scenes are described and {len(data)} are in it")
        return [
            unpack(Ranges.from_json(one["ranges"]), base64.b64decode(packed, validate=True))
            for one, packed in zip(described, data, strict=True)
        ]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"{path}: a damaged page: {error}") from error


def _render(title: str, scenes: Sequence[PageScene], up: Vector) -> str:
    described = [{"name": one.name, "note": one.told, "ranges": one.packed[0].to_json()} for one in scenes]
    record = {"start": _start(scenes[0].scene, up), "scenes": described}
    tag = '<script type="application/octet-stream" id="scene-{}">{}</script>'
    texts = [base64.b64encode(one.packed[1]).decode("ascii") for one in scenes]
    data = "\n".join(tag.format(index, text) for index, text in enumerate(texts))
    return Template(_asset("page.html")).substitute(
        generator=GENERATOR,
        title=escape(title, quote=True),
        style=_asset("page.css"),
        choice=_choice(scenes),
        page=json.dumps(record, allow_nan=False).replace("<", "\\u003c"),
        scenes=data,
        vertex=_asset("splat.vert"),
        fragment=_asset("splat.frag"),
        sorter=_asset("sorter.js"),
        script="\n".join(_asset(name) for name in _SCRIPTS),
    )


def _asset(name: str) -> str:
    return files("compress3d.splats.standalone").joinpath(name).read_text(encoding="utf-8")


def _choice(scenes: Sequence[PageScene]) -> str:
    """Buttons that choose the scene, where there are several."""
    if len(scenes) == 1:
        return ""
    buttons = "".join(
        f'<button type="button" data-scene="{index}" aria-pressed="false">{escape(one.name)}</button>'
        for index, one in enumerate(scenes)
    )
    return f'<div class="choice" role="group" aria-label="Scene">{buttons}</div>'


def _start(scene: SplatScene, up: Vector) -> dict[str, Any]:
    view = viewpoint(scene, up)
    return {"position": view.position.tolist(), "target": view.target.tolist(), "up": list(up), "fov": view.fov}


def _too_large(scenes: Sequence[PageScene], size: int, limit: int) -> str:
    count = sum(len(one.scene) for one in scenes)
    data = sum(len(one.packed[1]) for one in scenes) * 4 / 3
    fits = int(0.95 * count * max(0.0, limit - (size - data)) / data) // 100 * 100
    what = f"{count:,} Gaussians" + (f" in {len(scenes)} scenes" if len(scenes) > 1 else "")
    return (
        f"{what} make a page of {format_bytes(size)}, and {format_bytes(limit)} is the most: about {fits:,} Gaussians "
        "would fit, so compress it further (secateur splat compress --keep)"
    )
