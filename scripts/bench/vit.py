"""Measure what methods of pruning are worth on vision transformers, and draw what came out.

Each part is written into the JSON as soon as it is measured, beside what is there already, with the conditions that it
was measured under; so a run can be stopped, and --missing goes on with the parts that the JSON lacks.

Minutes of one thread's processor time, by rows that were measured beside other work (a quiet machine needs less): dense
11 (three trainings), static 45, tokens 36, peer 21, blocks 4, marked 7, segmentation 7, dimap 5, latency 4.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# The package that is measured has this file's name, and Python looks into a script's own folder first.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from parts import Part, measure, names_of, parts_left, read_results
from peers import ROOT
from vision import dense, latency, peer, sparse, static, tokens
from vision.pictures import draw_all
from vision.settings import Settings

from secateur.console import console

SECTIONS = {
    "dense": dense.jobs,
    "static": static.jobs,
    "tokens": tokens.jobs,
    "peer": peer.jobs,
    "blocks": sparse.block_jobs,
    "marked": tokens.marked_jobs,
    "segmentation": tokens.segmentation_jobs,
    "dimap": sparse.dimap_jobs,
    "latency": latency.jobs,
}
PACKAGES = ("secateur", "torch", "torch-pruning", "transformers", "lightning", "numba", "numpy")


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if not options.plots:
        settings = Settings(options.networks_at, options.quick)
        parts = chosen(options, settings, read_results(options.output) if options.missing else {})
        measure(parts, options.output, options.threads, PACKAGES, {"quick": options.quick})
        console.print(f"wrote {len(parts)} parts into {options.output.name}")
    for picture in draw_all(read_results(options.output), options.images):
        console.print(f"drew {picture.name}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names_of(SECTIONS), default=tuple(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--parts", default="*", help="only the parts whose names match this, such as 'Cropr: *'")
    parser.add_argument("--missing", action="store_true", help="only the parts that the JSON does not hold yet")
    parser.add_argument("--output", type=Path, help="the JSON (results/vit.json; with --quick under out/)")
    parser.add_argument("--images", type=Path, help="folder of the plots (docs/images; with --quick under out/)")
    parser.add_argument("--networks-at", type=Path, help="folder of the networks that the bench trains (under out/)")
    parser.add_argument("--threads", type=int, default=1, help="threads to be held to")
    parser.add_argument("--quick", action="store_true", help="only see that all runs; the figures mean nothing")
    parser.add_argument("--plots", action="store_true", help="draw from the JSON, measure nothing")
    options = parser.parse_args(arguments)
    # Figures that mean nothing must not land among those that do, nor hardly trained networks among trained ones.
    scratch = ROOT / "out" / "bench"
    results = scratch if options.quick else Path(__file__).resolve().parent / "results"
    options.output = options.output or results / "vit.json"
    options.images = options.images or (scratch if options.quick else ROOT / "docs" / "images")
    options.networks_at = options.networks_at or scratch / ("vision-quick" if options.quick else "vision")
    return options


def chosen(options: argparse.Namespace, settings: Settings, held: dict[str, Any]) -> list[Part]:
    """The parts that the options name, without those whose figures are held already."""
    jobs = {section: SECTIONS[section](settings) for section in options.only}
    return parts_left(jobs, options.parts, held)


if __name__ == "__main__":
    main(sys.argv[1:])
