"""The commands on neural fields and their arguments. What they do is in `cli.py`, `hollow_cli.py` and `evaluation.py`,
imported when one of them runs: help must not wait for torch."""

from __future__ import annotations

from collections.abc import Mapping
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
    parse_pixels,
    parse_share,
    parse_steps,
    parse_whole,
)
from compress3d.nerf.sizes import is_field
from secateur.cli import Command, CommandGroup, argument_type, later

_CLI = "compress3d.nerf.cli"

SUFFIX = ".safetensors"


def _parse_bits(value: Any) -> str:
    texts = [str(one) for one in value] if isinstance(value, list) else str(value).split(",")
    if any(text.strip() not in ("2", "3", "4", "5", "6", "7", "8") for text in texts):
        raise ValueError(f"{value!r} are not bits of an entry: give 2 to 8, or several separated by commas")
    return ",".join(text.strip() for text in texts)


def _configure_hollow(parser: ArgumentParser) -> None:
    _configure_train(parser)
    parser.add_argument(
        "--share",
        type=argument_type(parse_share),
        default=0.04,
        metavar="SHARE",
        help="the most of the mean saliency: about the share of space that stays (default: 4%%)",
    )


def _configure_train(parser: ArgumentParser) -> None:
    add_capture(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FIELD", help="file to write, .safetensors")
    count = argument_type(parse_whole)
    parser.add_argument(
        "--steps", type=count, default=10_000, metavar="N", help="steps of about 65000 samples each (default: 10000)"
    )
    parser.add_argument("--levels", type=count, default=8, metavar="L", help="levels of the hash grid (default: 8)")
    parser.add_argument(
        "--log2-table", type=count, default=17, metavar="N", help="most rows of a level are 2^N, 8 to 22 (default: 17)"
    )
    add_training(parser)
    parser.add_argument("--device", **DEVICE)


def _configure_compress(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FIELD", help="a neural field, .safetensors")
    add_capture(parser, "32 renders of the field itself")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="file to write, .safetensors")
    parser.add_argument(
        "--keep",
        type=argument_type(parse_kept),
        default="25%",
        metavar="SHARE",
        help="rows of the tables to keep: a share (25%%, 0.25) or a count (50000, 50k) (default: 25%%)",
    )
    parser.add_argument(
        "--bits",
        type=argument_type(_parse_bits),
        default="8",
        metavar="B",
        help="of a table entry, 2 to 8; several, separated by commas, one for each level that stays (default: 8)",
    )
    parser.add_argument("--levels", type=argument_type(parse_whole), metavar="L", help="levels to keep (default: all)")
    parser.add_argument(
        "--worth",
        choices=("fisher", "visits"),
        default="fisher",
        help="what rows are worth: by the Fisher information, or magnitude times how often they are read",
    )
    parser.add_argument(
        "--recover",
        type=argument_type(parse_steps),
        default=300,
        metavar="N",
        help="training steps that win back what compression cost (default: 300; 0: none)",
    )
    add_training(parser)
    parser.add_argument("--device", **DEVICE)
    _add_report(parser)


def _configure_render(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FIELD", help="a neural field, .safetensors")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="PNG", help="picture to write; several views are numbered"
    )
    parser.add_argument("--camera", type=Path, metavar="FILE.json", help="views (width, height, K or Ks, viewmats)")
    count = argument_type(parse_count)
    parser.add_argument("--orbit", type=count, metavar="K", help="K views around (default: 1, without a --camera)")
    parser.add_argument("--up", **UP)
    add_picture_size(parser)
    parser.add_argument("--device", **DEVICE)


def _configure_points(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FIELD", help="a neural field, .safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PLY", help="coloured points to write")
    count = argument_type(parse_whole)
    parser.add_argument("--count", type=count, default=50_000, metavar="N", help="the most points (default: 50000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the pixels (default: 0)")
    parser.add_argument("--device", **DEVICE)


def _configure_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FIELD", help="a neural field, .safetensors")
    add_capture(parser)
    parser.add_argument("--device", **DEVICE)
    _add_report(parser)


def _add_report(parser: ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, metavar="DIR", help="folder for index.html and results.json")


class FieldEvaluator:
    """Compares neural fields with the one that they stand for."""

    options: Mapping[str, Mapping[str, Any]] = {
        "--capture": {
            "type": Path,
            "metavar": "DIR",
            "help": "posed photographs to judge fields by, instead of the reference's own renders",
        },
        "--long-side": {
            "type": argument_type(parse_pixels),
            "metavar": "PIXELS",
            "help": "make photographs smaller, to this long side",
        },
        "--split": {
            "choices": ("file", "every8"),
            "help": "photographs to judge by: the capture's own, or every eighth by name",
        },
        "--cameras": CAMERAS,
        "--views": VIEWS,
        "--up": UP,
        "--device": DEVICE,
    }
    run = staticmethod(later("compress3d.nerf.evaluation", "evaluate_files"))

    def accepts(self, path: Path) -> bool:
        """Whether the file at `path` says that it holds a neural field."""
        return path.suffix == SUFFIX and is_field(path)


FIELD_EVALUATOR = FieldEvaluator()


NERF = CommandGroup(
    "train, compress, render and measure neural radiance fields",
    {
        "train": Command(
            "train a field from posed photographs",
            _configure_train,
            later(_CLI, "train_capture"),
            later(_CLI, "show_training"),
        ),
        "hollow": Command(
            "train a field that learns where it is hollow, and is never asked there again (HollowNeRF)",
            _configure_hollow,
            later("compress3d.nerf.hollow_cli", "hollow_capture"),
            later("compress3d.nerf.hollow_cli", "show_hollow"),
        ),
        "compress": Command(
            "make a field smaller, and measure what it cost",
            _configure_compress,
            later(_CLI, "compress_file"),
            later(_CLI, "show_compression"),
        ),
        "render": Command(
            "draw pictures of a field",
            _configure_render,
            later(_CLI, "render_file"),
            later(_CLI, "show_pictures"),
        ),
        "points": Command(
            "write a field's surfaces as points, which start `secateur splat train --start`",
            _configure_points,
            later(_CLI, "points_file"),
            later(_CLI, "show_pictures"),
        ),
        "evaluate": Command(
            "measure how close a field comes to photographs",
            _configure_evaluate,
            later(_CLI, "evaluate_file"),
            later(_CLI, "show_evaluation"),
        ),
    },
)
