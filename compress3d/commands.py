"""The commands on splats and their arguments. What they do is in `splats/cli.py`, `splats/train_cli.py` and
`splats/view_cli.py`, imported when one of them runs: help must not wait for torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from compress3d.arguments import (
    CAMERAS,
    DEVICE,
    UP,
    VIEWS,
    add_capture,
    add_picture_size,
    add_training,
    parse_count,
    parse_kept,
    parse_share,
    parse_steps,
    parse_whole,
)
from compress3d.suffixes import SPLAT_CODECS, splat_codec
from secateur.cli import Command, CommandGroup, argument_type, later
from secateur.quantities import parse_decibels, parse_keep, parse_size

_CLI = "compress3d.splats.cli"

_SEED: dict[str, Any] = {"type": int, "default": 0, "metavar": "N", "help": "seed of the sampled views (default: 0)"}


def _several(parse: Callable[[Any], Any]) -> Callable[[Any], str]:
    """Checks one budget or several ("50%,25%", or a list in a recipe); gives them joined by commas."""

    def check(value: Any) -> str:
        texts = [str(one) for one in value] if isinstance(value, list) else str(value).split(",")
        for text in texts:
            parse(text)
        return ",".join(text.strip() for text in texts)

    return argument_type(check)


def _parse_degree(value: Any) -> int:
    if str(value) not in ("0", "1", "2", "3"):
        raise ValueError(f"{value!r} is not a spherical-harmonic degree: choose 0, 1, 2 or 3")
    return int(value)


def _parse_degree_or_auto(value: Any) -> int | str:
    if str(value) not in ("0", "1", "2", "3", "auto"):
        raise ValueError(f"{value!r} is not a spherical-harmonic degree: choose 0, 1, 2, 3 or auto")
    return "auto" if value == "auto" else int(value)


def _parse_axes(value: Any) -> str:
    axes = str(value).upper()
    if len(axes) != 3 or any(len(set(axes) & set(pair)) != 1 for pair in ("RL", "DU", "FB")):
        raise ValueError(f"{value!r} are not axes: give one each of R|L, D|U and F|B, such as RDF")
    return axes


def _add_scene(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help=f"a splat scene: {', '.join(SPLAT_CODECS)}")
    _add_spz_axes(parser, "FILE, if it is SPZ")


def _add_spz_axes(parser: ArgumentParser, file: str) -> None:
    parser.add_argument(
        "--spz-axes",
        type=argument_type(_parse_axes),
        metavar="AXES",
        help=f"where x, y and z point in {file}: RDF (right, down, front) for tools that write the axes of a PLY, as "
        "splat-transform does (default: what the file says, or RUB, as SPZ has it)",
    )


def _add_degree(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--sh-degree",
        type=argument_type(_parse_degree),
        metavar="D",
        help="drop spherical-harmonic coefficients above this degree, 0 to 3",
    )


def _configure_compress(parser: ArgumentParser) -> None:
    _add_scene(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="file to write; its suffix says the format"
    )
    several = "; several, separated by commas, write one file each"
    parser.add_argument(
        "--keep",
        type=_several(parse_keep),
        metavar="SHARE",
        help=f"Gaussians to keep: a share (25%%, 0.25) or a count (50000, 50k){several}",
    )
    parser.add_argument(
        "--size",
        type=_several(parse_size),
        metavar="BYTES",
        help=f"size that the file must not exceed (2MB, 800kB, 1.5MiB){several}",
    )
    parser.add_argument(
        "--psnr",
        type=_several(parse_decibels),
        metavar="DB",
        help=f"dB that the file must hold against the original's own renders{several}",
    )
    parser.add_argument(
        "--recover",
        type=argument_type(parse_steps),
        metavar="N",
        help="gradient steps that win back what compression cost (default: 600, about a minute; 0: none)",
    )
    parser.add_argument(
        "--captures",
        type=Path,
        metavar="DIR",
        help="photographs of the scene, in its frame, to recover by beside the original's own renders",
    )
    parser.add_argument(
        "--sh-degree",
        type=argument_type(_parse_degree_or_auto),
        metavar="D",
        help="drop spherical-harmonic coefficients above this degree, 0 to 3; auto: the lowest that costs the smaller "
        "scene no more than 0.1 dB",
    )
    parser.add_argument(
        "--sh-keep",
        type=argument_type(parse_share),
        default=1.0,
        metavar="SHARE",
        help="spherical-harmonic coefficients above degree 0 to keep (25%%, 0.25), those that are seen most; the "
        "others become 0, which makes .sog and .spz smaller (default: all)",
    )
    parser.add_argument("--cameras", **CAMERAS)
    parser.add_argument("--up", **UP)
    parser.add_argument("--seed", **_SEED)
    parser.add_argument("--report", type=Path, metavar="DIR", help="folder for index.html and results.json")
    parser.add_argument(
        "--report-3d",
        action="store_true",
        help="also write scene.html there: the scenes to turn in 3D, in one page to share",
    )


def _configure_convert(parser: ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="IN", help=f"a splat scene: {', '.join(SPLAT_CODECS)}")
    parser.add_argument("output", type=Path, metavar="OUT", help="file to write; its suffix says the format")
    _add_degree(parser)
    _add_spz_axes(parser, "the file that is SPZ, or in IN if both are")


def _configure_render(parser: ArgumentParser) -> None:
    _add_scene(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="PNG", help="picture to write; several views are numbered"
    )
    parser.add_argument("--camera", **CAMERAS)
    parser.add_argument(
        "--orbit",
        type=argument_type(parse_count),
        metavar="K",
        help="K views around the scene (default: 1, when there is no --camera)",
    )
    parser.add_argument("--up", **UP)
    add_picture_size(parser)


def _parse_port(value: Any) -> int:
    if not str(value).isdecimal() or int(value) > 65535:
        raise ValueError(f"{value!r} is not a port: it must be 0 (any) to 65535")
    return int(value)


def _configure_view(parser: ArgumentParser) -> None:
    _add_scene(parser)
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="its compressed twin, to look at by toggle or beside it"
    )
    parser.add_argument("--cameras", **CAMERAS)
    parser.add_argument("--up", **UP)
    parser.add_argument(
        "--max-gaussians",
        type=argument_type(parse_whole),
        default=1_000_000,
        metavar="N",
        help="draw no more than the N most visible ones of a scene (default: 1000000)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument(
        "--port",
        type=argument_type(_parse_port),
        default=8080,
        metavar="N",
        help="to listen on; the next free one, if it is taken (default: 8080)",
    )
    parser.add_argument("--no-open", action="store_true", help="do not open a browser, only say the address")


def _configure_train(parser: ArgumentParser) -> None:
    add_capture(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="file to write; its suffix says the format"
    )
    count = argument_type(parse_whole)
    parser.add_argument(
        "--steps", type=count, default=15_000, metavar="N", help="steps of one photograph each (default: 15000)"
    )
    parser.add_argument(
        "--sh-degree",
        type=argument_type(_parse_degree),
        default=3,
        metavar="D",
        help="degree of the spherical harmonics, 0 to 3 (default: 3)",
    )
    parser.add_argument(
        "--density",
        choices=("default", "mcmc"),
        default="default",
        help="where Gaussians are born and die: 3DGS's adaptive control, or Markov chain Monte Carlo",
    )
    parser.add_argument(
        "--max-gaussians",
        type=count,
        metavar="N",
        help="the most that may be grown (default: 60000 on a CPU, a million on a GPU)",
    )
    parser.add_argument(
        "--prune",
        choices=("radsplat", "sundae"),
        help="prune while training, as one of these publications does",
    )
    parser.add_argument(
        "--keep",
        type=argument_type(parse_kept),
        metavar="SHARE",
        help="what pruning while training leaves: a share (25%%, 0.25) or a count (20000, 20k) of Gaussians",
    )
    parser.add_argument(
        "--start", type=Path, metavar="FILE.ply", help="coloured points to start from, instead of the capture's own"
    )
    parser.add_argument("--antialiased", action="store_true", help="train for the mip (antialiased) rasteriser")
    parser.add_argument("--device", **DEVICE)
    add_training(parser)
    parser.add_argument("--report", type=Path, metavar="DIR", help="folder for index.html and results.json")


class SplatEvaluator:
    """Compares splat scenes with the one that they stand for."""

    options: Mapping[str, Mapping[str, Any]] = {
        "--cameras": CAMERAS,
        "--views": VIEWS,
        "--up": UP,
        "--seed": _SEED,
    }
    run = staticmethod(later(_CLI, "evaluate_files"))

    def accepts(self, path: Path) -> bool:
        """Whether `path` is named as splat scenes are."""
        if path.is_dir():
            return (path / "meta.json").exists()
        return splat_codec(path.name) is not None


SPLAT = CommandGroup(
    "compress, convert, render and look into Gaussian-splat scenes",
    {
        "info": Command(
            "say what is in a scene: Gaussians, bytes by attribute, extent",
            _add_scene,
            later(_CLI, "describe_file"),
            later(_CLI, "show_info"),
        ),
        "compress": Command(
            "make a scene smaller, to a share, a size or a quality, and measure what it cost",
            _configure_compress,
            later(_CLI, "compress_file"),
            later(_CLI, "show_compressions"),
        ),
        "convert": Command(
            "write a scene in another format",
            _configure_convert,
            later(_CLI, "convert_file"),
            later(_CLI, "show_conversion"),
        ),
        "render": Command(
            "draw pictures of a scene", _configure_render, later(_CLI, "render_file"), later(_CLI, "show_pictures")
        ),
        "view": Command(
            "look at a scene in the browser: beside its twin, by importance, and what would go",
            _configure_view,
            later("compress3d.splats.view_cli", "view_file"),
            later("compress3d.splats.view_cli", "show_viewing"),
        ),
        "train": Command(
            "train a scene from posed photographs",
            _configure_train,
            later("compress3d.splats.train_cli", "train_capture"),
            later("compress3d.splats.train_cli", "show_training"),
        ),
    },
)

SPLAT_EVALUATOR = SplatEvaluator()
