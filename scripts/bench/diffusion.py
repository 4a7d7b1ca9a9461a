"""Measure what methods of pruning are worth on the demo diffusion models, and draw what came out.

Each part is written into the JSON as soon as it is measured, beside what is there already, with the conditions that it
was measured under; so a run can be stopped, and --missing goes on with the parts that the JSON lacks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The package that is measured has this file's name, and Python looks into a script's own folder first.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from command import Bench, names_of
from denoisers import blocks, dense, experts, full, grids, one_shot, patches, recovered, speed, training_free
from denoisers.pictures import draw_all
from denoisers.settings import Settings
from denoisers.subjects import SUBJECTS

from secateur.console import console

SECTIONS = {
    "dense": dense.jobs,
    "speed": speed.jobs,
    "one_shot": one_shot.jobs,
    "recovered": recovered.jobs,
    "blocks": blocks.jobs,
    "training_free": training_free.jobs,
    "patches": patches.jobs,
    "experts": experts.jobs,
    "full": full.jobs,
}
PACKAGES = ("secateur", "torch", "diffusers", "transformers", "lightning", "numpy", "scipy", "onnxruntime")


BENCH = Bench("diffusion", __doc__, SECTIONS, PACKAGES, draw_all, threads=1)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    settings = Settings(options.models, options.quick)
    BENCH.run(options, settings)
    if options.grids:
        for name in options.models:
            console.print(f"drew {grids.draw(name, settings, options.images).name}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = BENCH.parser()
    parser.add_argument("--models", type=names_of(SUBJECTS), default=tuple(SUBJECTS), help=f"of {','.join(SUBJECTS)}")
    parser.add_argument("--grids", action="store_true", help="draw samples of dense, pruned and recovered models, too")
    return BENCH.parse(parser, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
