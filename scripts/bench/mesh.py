"""Measure what silhouettes and decimation make of a damaged mesh of the chair, and how fast soft silhouettes are drawn.

Each part is written into the JSON as soon as it is measured, beside what is there already, with the conditions that it
was measured under; so a run can be stopped, and --missing goes on with the parts that the JSON lacks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from meshes import chair, renderer, voxels
from meshes.settings import Settings
from parts import measure, names_of, parts_left, read_results
from peers import ROOT, SHARED

from secateur.console import console
from secateur.report.record import describe_machine

SECTIONS = {"chair": chair.jobs, "voxels": voxels.jobs, "renderer": renderer.jobs}
PACKAGES = ("secateur", "torch", "numba", "open3d-cpu", "numpy", "scipy")


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    settings = Settings(options.capture, options.images, options.quick)
    held = read_results(options.output) if options.missing else {}
    parts = parts_left({section: SECTIONS[section](settings) for section in options.only}, options.parts, held)
    measure(parts, options.output, options.threads, PACKAGES, {"quick": options.quick})
    console.print(f"wrote {len(parts)} parts into {options.output.name}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names_of(SECTIONS), default=tuple(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--parts", default="*", help="only the parts whose names match this")
    parser.add_argument("--missing", action="store_true", help="only the parts that the JSON does not hold yet")
    parser.add_argument("--capture", type=Path, help="the chair of NeRF-synthetic (shared/data beside the checkout)")
    parser.add_argument("--output", type=Path, help="the JSON (results/mesh.json; with --quick under out/)")
    parser.add_argument("--images", type=Path, help="folder of the pictures (docs/images; with --quick under out/)")
    parser.add_argument("--threads", type=int, default=describe_machine().cores, help="threads to be held to")
    parser.add_argument("--quick", action="store_true", help="only see that all runs; the figures mean nothing")
    options = parser.parse_args(arguments)
    scratch = ROOT / "out" / "bench"
    results = scratch if options.quick else Path(__file__).resolve().parent / "results"
    options.capture = options.capture or SHARED / "data" / "nerf_synthetic" / "chair"
    options.output = options.output or results / "mesh.json"
    options.images = options.images or (scratch if options.quick else ROOT / "docs" / "images")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
