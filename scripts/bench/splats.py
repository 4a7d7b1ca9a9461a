"""Measure splat compression against its peers, and draw what came out.

Each part of a section is written into the JSON as soon as it is measured, beside what is there already, with the
conditions that it was measured under; so a run can be stopped, and --missing goes on with the parts left.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from command import Bench, names_of
from peers import find_splat_transform
from plots import draw_all
from sections import baking, codecs, criteria, growth, pages, rasterizer, recover, simplify, size, systems, visibility
from settings import SCENES, Settings

from compress3d.splats.evaluate import PACKAGES
from secateur.console import messages

SECTIONS = {
    "simplify": simplify.jobs,
    "criteria": criteria.jobs,
    "recover": recover.jobs,
    "size": size.jobs,
    "systems": systems.jobs,
    "codecs": codecs.jobs,
    "pages": pages.jobs,
    "baking": baking.jobs,
    "rasterizer": rasterizer.jobs,
    "visibility": visibility.jobs,
    "growth": growth.jobs,
}


BENCH = Bench("splats", __doc__, SECTIONS, (*PACKAGES, "scipy", "plyfile", "zstandard"), draw_all)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    settings = Settings(options.scenes, _peer(), options.limit, options.quick)
    peer = settings.splat_transform.version if settings.splat_transform else None
    BENCH.run(options, settings, splat_transform=peer)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = BENCH.parser()
    parser.add_argument("--scenes", type=names_of(SCENES), default=tuple(SCENES), help=f"of {','.join(SCENES)}")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one process may take")
    return BENCH.parse(parser, arguments)


def _peer() -> Any:
    try:
        return find_splat_transform()
    except FileNotFoundError as missing:
        messages.print(f"ours alone: {missing}", highlight=False)
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
