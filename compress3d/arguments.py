"""Arguments that the commands on splats, fields and meshes share; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from secateur.cli import argument_type
from secateur.quantities import parse_keep

CAMERAS: dict[str, Any] = {
    "type": Path,
    "metavar": "FILE.json",
    "help": "views of the scene (width, height, K or Ks, viewmats), instead of views sampled by its shape",
}
UP: dict[str, Any] = {
    "choices": ("x", "-x", "y", "-y", "z", "-z"),
    "default": "-y",
    "help": "axis of the scene that points up in the views that are sampled (--up=z; default: -y)",
}
DEVICE: dict[str, Any] = {"metavar": "NAME", "help": "cpu or cuda (default: cuda where there is one)"}


def parse_share(value: Any) -> float:
    """A share, above 0 and at most 1."""
    share = parse_keep(value)
    if not isinstance(share, float):
        raise ValueError(f"{str(value)!r} is not a share: write it as 25% or 0.25")
    return share


def parse_kept(value: Any) -> str:
    """The text of a share or a count to keep, checked."""
    parse_keep(value)
    return str(value)


def parse_whole(value: Any) -> int:
    """A whole number from 1 up; 10_000 is one."""
    text = str(value).replace("_", "")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{value!r} is not a whole number from 1 up")
    return int(text)


def parse_count(value: Any) -> int:
    """A number of views, from 1 up."""
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{value!r} is not a number of views: it must be at least 1")
    return int(value)


def parse_steps(value: Any) -> int:
    """A number of steps, from 0 to a million."""
    if not str(value).isdecimal() or int(value) > 1_000_000:
        raise ValueError(f"{value!r} is not a number of steps from 0 to 1000000")
    return int(value)


def parse_pixels(value: Any) -> int:
    """A number of pixels, from 1 to 16384."""
    if not str(value).isdecimal() or not 1 <= int(value) <= 16384:
        raise ValueError(f"{value!r} is not a number of pixels from 1 to 16384")
    return int(value)


VIEWS: dict[str, Any] = {
    "type": argument_type(parse_count),
    "default": 16,
    "metavar": "K",
    "help": "views to sample when there are no --cameras (default: 16)",
}


def add_capture(parser: ArgumentParser, absent: str | None = None) -> None:
    """Photographs, and which of them. Where photographs may be absent, `absent` says what is taken instead."""
    what = "posed photographs: a folder of NeRF-synthetic, instant-ngp, nerfstudio or COLMAP, or a transforms.json"
    if absent is None:
        parser.add_argument("capture", type=Path, metavar="CAPTURE", help=what)
    else:
        parser.add_argument("capture", type=Path, nargs="?", metavar="CAPTURE", help=f"{what} (default: {absent})")
    parser.add_argument(
        "--long-side",
        type=argument_type(parse_pixels),
        metavar="PIXELS",
        help="make photographs smaller, to this long side",
    )
    parser.add_argument(
        "--split",
        choices=("file", "every8"),
        help="photographs to judge by: the capture's own, or every eighth by name (default: its own, if it has some)",
    )
    parser.add_argument("--strict", action="store_true", help="refuse a capture with photographs missing")


def add_training(parser: ArgumentParser) -> None:
    """What all trainings can be told."""
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all that is random (default: 0)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="file to keep what is trained so far in")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")


def add_picture_size(parser: ArgumentParser) -> None:
    """Of a picture that is drawn."""
    pixels = argument_type(parse_pixels)
    parser.add_argument("--width", type=pixels, metavar="PIXELS", help="of the picture (default: 800, or the camera's)")
    parser.add_argument("--height", type=pixels, metavar="PIXELS", help="of the picture (default: as the width)")
