"""Measure what criteria of pruning are worth on two networks that read Fashion-MNIST, and draw what came out.

Each part is written into the JSON as soon as it is measured, beside what is there already, with the conditions that it
was measured under; so a run can be stopped, and --missing goes on with the parts that the JSON lacks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from command import Bench, names_of
from networks import baseline, cost, peer, structured, unstructured
from networks.models import KINDS
from networks.pictures import draw_all
from networks.settings import Settings

SECTIONS = {
    "dense": baseline.jobs,
    "structured": structured.jobs,
    "peer": peer.jobs,
    "unstructured": unstructured.jobs,
    "cost": cost.jobs,
}
PACKAGES = ("secateur", "torch", "torch-pruning", "lightning", "numpy", "scipy")


BENCH = Bench("criteria", __doc__, SECTIONS, PACKAGES, draw_all)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    BENCH.run(options, Settings(options.networks, options.networks_at, options.limit, options.quick))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = BENCH.parser()
    parser.add_argument("--networks", type=names_of(KINDS), default=tuple(KINDS), help=f"of {','.join(KINDS)}")
    parser.add_argument("--networks-at", type=Path, help="folder of the trained networks (under out/)")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one process may take")
    options = BENCH.parse(parser, arguments)
    # Hardly trained networks must not land among trained ones.
    options.networks_at = options.networks_at or options.scratch / ("networks-quick" if options.quick else "networks")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
