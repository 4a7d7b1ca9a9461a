"""Measure what methods of pruning are worth on vision transformers, and draw what came out.

Each part is written into the JSON as soon as it is measured, beside what is there already, with the conditions that it
was measured under; so a run can be stopped, and --missing goes on with the parts that the JSON lacks.

Minutes of one thread's processor time, by rows that were measured beside other work (a quiet machine needs less): dense
11 (three trainings), static 45, tokens 130 (100 of them the long trainings), peer 21, blocks 4, marked 7, segmentation
7, dimap 5, latency 4.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The package that is measured has this file's name, and Python looks into a script's own folder first.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from command import Bench
from vision import dense, latency, long_tokens, peer, sparse, static, tokens
from vision.pictures import draw_all
from vision.settings import Settings

SECTIONS = {
    "dense": dense.jobs,
    "static": static.jobs,
    "tokens": lambda settings: tokens.jobs(settings) | long_tokens.jobs(settings),
    "peer": peer.jobs,
    "blocks": sparse.block_jobs,
    "marked": tokens.marked_jobs,
    "segmentation": tokens.segmentation_jobs,
    "dimap": sparse.dimap_jobs,
    "latency": latency.jobs,
}
PACKAGES = ("secateur", "torch", "torch-pruning", "transformers", "lightning", "numba", "numpy")


BENCH = Bench("vit", __doc__, SECTIONS, PACKAGES, draw_all, threads=1)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    BENCH.run(options, Settings(options.networks_at, options.quick))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = BENCH.parser()
    parser.add_argument("--networks-at", type=Path, help="folder of the networks that the bench trains (under out/)")
    options = BENCH.parse(parser, arguments)
    # Hardly trained networks must not land among trained ones.
    options.networks_at = options.networks_at or options.scratch / ("vision-quick" if options.quick else "vision")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
