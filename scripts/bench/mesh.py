"""Measure what silhouettes and decimation make of a damaged mesh of the chair, and how fast soft silhouettes are drawn.

Each part is written into the JSON as soon as it is measured, beside what is there already, with the conditions that it
was measured under; so a run can be stopped, and --missing goes on with the parts that the JSON lacks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from command import Bench
from meshes import chair, renderer, voxels
from meshes.settings import Settings
from peers import ROOT, SHARED

SECTIONS = {"chair": chair.jobs, "voxels": voxels.jobs, "renderer": renderer.jobs}
PACKAGES = ("secateur", "torch", "numba", "open3d-cpu", "numpy", "scipy")


BENCH = Bench("mesh", __doc__, SECTIONS, PACKAGES)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    BENCH.run(options, Settings(options.capture, options.images, options.quick))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = BENCH.parser()
    parser.add_argument("--capture", type=Path, help="the chair of NeRF-synthetic (shared/data beside the checkout)")
    parser.add_argument("--images", type=Path, help="folder of the pictures (docs/images; with --quick under out/)")
    options = BENCH.parse(parser, arguments)
    options.capture = options.capture or SHARED / "data" / "nerf_synthetic" / "chair"
    options.images = options.images or (options.scratch if options.quick else ROOT / "docs" / "images")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
