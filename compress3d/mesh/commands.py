"""The commands of meshes and their arguments. What they do is in `cli.py`, imported when one of them runs: help must
not wait for torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from compress3d.arguments import parse_kept, parse_pixels
from secateur.cli import Command, CommandGroup, argument_type, later

_CLI = "compress3d.mesh.cli"


def _parse_unit_interval(value: Any) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} is not a number from 0 to 1")
    return number


def _parse_softness(value: Any) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1e4:
        raise ValueError(f"{value!r} is not a softness: write square pixels, above 0")
    return number


def _parse_steps(value: Any) -> int:
    if not str(value).isdecimal() or int(value) > 1000:
        raise ValueError(f"{value!r} is not a number of steps from 0 to 1000")
    return int(value)


def _configure_info(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="MESH", help="a triangle mesh: .ply, .obj or .stl")


def _configure_prune(parser: ArgumentParser) -> None:
    _configure_info(parser)
    parser.add_argument(
        "capture",
        type=Path,
        metavar="CAPTURE",
        help="posed photographs with alpha, in the world of the mesh: a folder of NeRF-synthetic, instant-ngp, "
        "nerfstudio or COLMAP",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="file to write; its suffix says the format"
    )
    share = argument_type(_parse_unit_interval)
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.25,
        metavar="T",
        help="faces go of which less than this share is inside a silhouette, in some view (default: 0.25)",
    )
    parser.add_argument(
        "--keep",
        type=argument_type(parse_kept),
        metavar="SHARE",
        help="faces to keep instead, the best: a share (25%%, 0.25) or a count (50000, 50k)",
    )
    parser.add_argument(
        "--tolerated",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of the views that may say that a face is outside (default: 0)",
    )
    parser.add_argument(
        "--sigma",
        type=argument_type(_parse_softness),
        default=1.0,
        metavar="PIXELS2",
        help="softness of a face's outline in square pixels (default: 1)",
    )
    parser.add_argument(
        "--stray",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="pieces go of less than this share of the largest piece's area (default: 0.01)",
    )
    parser.add_argument(
        "--smooth", type=argument_type(_parse_steps), default=0, metavar="N", help="smoothing steps (default: 0)"
    )
    parser.add_argument(
        "--long-side",
        type=argument_type(parse_pixels),
        metavar="PIXELS",
        help="make photographs smaller, to this long side",
    )


MESH = CommandGroup(
    "prune triangle meshes by silhouettes, and look into them",
    {
        "info": Command(
            "say what is in a mesh: faces, pieces, holes, genus",
            _configure_info,
            later(_CLI, "describe_file"),
            later(_CLI, "show_info"),
        ),
        "prune": Command(
            "remove the faces that photographs show to be outside of the object",
            _configure_prune,
            later(_CLI, "prune_file"),
            later(_CLI, "show_pruning"),
        ),
    },
)
