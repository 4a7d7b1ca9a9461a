"""Measure splat compression against its peers, and draw what came out.

Each part of a section is written into the JSON as soon as it is measured, beside what is there already, with the
conditions that it was measured under; so a run can be stopped, and --missing goes on with the parts left.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from parts import measure, names_of, parts_left, read_results
from peers import ROOT, find_splat_transform
from plots import draw_all
from sections import baking, codecs, criteria, growth, rasterizer, recover, simplify, size, systems, visibility
from settings import SCENES, Settings

from compress3d.splats.evaluate import PACKAGES
from secateur.console import console, messages
from secateur.report.record import describe_machine

SECTIONS = {
    "simplify": simplify.jobs,
    "criteria": criteria.jobs,
    "recover": recover.jobs,
    "size": size.jobs,
    "systems": systems.jobs,
    "codecs": codecs.jobs,
    "baking": baking.jobs,
    "rasterizer": rasterizer.jobs,
    "visibility": visibility.jobs,
    "growth": growth.jobs,
}


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if not options.plots:
        settings = Settings(options.scenes, _peer(), options.limit, options.quick)
        jobs = {section: SECTIONS[section](settings) for section in options.only}
        parts = parts_left(jobs, options.parts, read_results(options.output) if options.missing else {})
        peer = settings.splat_transform.version if settings.splat_transform else None
        facts = {"splat_transform": peer, "quick": settings.quick}
        measure(parts, options.output, options.threads, (*PACKAGES, "scipy", "plyfile", "zstandard"), facts)
        console.print(f"wrote {len(parts)} parts into {options.output.name}")
    for picture in draw_all(read_results(options.output), options.images):
        console.print(f"drew {picture.name}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names_of(SECTIONS), default=tuple(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--scenes", type=names_of(SCENES), default=tuple(SCENES), help=f"of {','.join(SCENES)}")
    parser.add_argument("--parts", default="*", help="only the parts whose names match this, such as 'chair: *'")
    parser.add_argument("--missing", action="store_true", help="only the parts that the JSON does not hold yet")
    parser.add_argument(
        "--output", type=Path, help="the JSON to write into (results/splats.json; with --quick under out/)"
    )
    parser.add_argument("--images", type=Path, help="folder of the plots (docs/images; with --quick under out/)")
    parser.add_argument("--threads", type=int, default=describe_machine().cores, help="threads to be held to")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one process may take")
    parser.add_argument("--quick", action="store_true", help="only see that all runs; the figures mean nothing")
    parser.add_argument("--plots", action="store_true", help="draw from the JSON, measure nothing")
    options = parser.parse_args(arguments)
    # Figures that mean nothing must not land among those that do.
    scratch = ROOT / "out" / "bench" if options.quick else None
    options.output = options.output or (scratch or Path(__file__).resolve().parent / "results") / "splats.json"
    options.images = options.images or scratch or ROOT / "docs" / "images"
    return options


def _peer() -> Any:
    try:
        return find_splat_transform()
    except FileNotFoundError as missing:
        messages.print(f"ours alone: {missing}", highlight=False)
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
