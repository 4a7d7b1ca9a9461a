"""Measure neural fields: training, speed, HollowNeRF, compression, surfaces; and draw what came out.

Each part is written into the JSON as soon as it is measured, beside what is there already, with the conditions that it
was measured under; so a run can be stopped, and --missing goes on with the parts that the JSON lacks. Trainings of the
chair and the fox go on from their checkpoints.

Sections: chair (after 30 and 90 minutes, and at the end), rays (beside plain torch), view, fox, mesh, compress (rows,
levels, sharing, bits) and hollow (HollowNeRF, by size of the tables).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The package that is measured has this file's name, and Python looks into a script's own folder first.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fields import chair, compress, fox, hollow, mesh, speed
from fields.pictures import draw_all
from fields.settings import Settings
from parts import keep, measure, names_of, parts_left, read_results
from peers import ROOT, SHARED

from compress3d.nerf.train import STEPS
from secateur.console import console
from secateur.report.record import describe_machine

SECTIONS = {
    "chair": chair.jobs,
    "rays": speed.jobs,
    "view": speed.view_jobs,
    "fox": fox.jobs,
    "mesh": mesh.jobs,
    "compress": compress.jobs,
    "hollow": hollow.jobs,
}
PACKAGES = ("secateur", "torch", "lightning", "numba", "numpy", "scipy", "zstandard", "open3d-cpu")


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if not options.plots:
        settings = Settings(
            options.chair, options.fox, options.fields_at, options.images, options.field, options.steps, options.quick
        )
        held = read_results(options.output) if options.missing else {}
        parts = parts_left({section: SECTIONS[section](settings) for section in options.only}, options.parts, held)
        measure(parts, options.output, options.threads, PACKAGES, {"quick": options.quick})
        console.print(f"wrote {len(parts)} parts into {options.output.name}")
    results = read_results(options.output)
    if results.get("hollow"):
        keep(options.output, "claims", "hollow", {"rows": hollow.claims(results["hollow"])})
    for picture in draw_all(results, options.images):
        console.print(f"drew {picture.name}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names_of(SECTIONS), default=tuple(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--parts", default="*", help="only the parts whose names match this, such as '2^1[46]*'")
    parser.add_argument("--missing", action="store_true", help="only the parts that the JSON does not hold yet")
    parser.add_argument("--chair", type=Path, help="the chair of NeRF-synthetic (shared/data beside the checkout)")
    parser.add_argument("--fox", type=Path, help="the fox of instant-ngp (shared/data beside the checkout)")
    parser.add_argument("--field", type=Path, help="a trained field of the chair, instead of the bench's own")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the chair's training (default: {STEPS})")
    parser.add_argument("--fields-at", type=Path, help="folder of the fields that the bench trains (under out/)")
    parser.add_argument("--output", type=Path, help="the JSON (results/nerf.json; with --quick under out/)")
    parser.add_argument("--images", type=Path, help="folder of the plots (docs/images; with --quick under out/)")
    parser.add_argument("--threads", type=int, default=describe_machine().cores, help="threads to be held to")
    parser.add_argument("--quick", action="store_true", help="only see that all runs; the figures mean nothing")
    parser.add_argument("--plots", action="store_true", help="draw from the JSON, measure nothing")
    options = parser.parse_args(arguments)
    # Figures that mean nothing must not land among those that do, nor hardly trained fields among trained ones.
    scratch = ROOT / "out" / "bench"
    results = scratch if options.quick else Path(__file__).resolve().parent / "results"
    options.chair = options.chair or SHARED / "data" / "nerf_synthetic" / "chair"
    options.fox = options.fox or SHARED / "data" / "fox"
    options.output = options.output or results / "nerf.json"
    options.images = options.images or (scratch if options.quick else ROOT / "docs" / "images")
    options.fields_at = options.fields_at or scratch / ("fields-quick" if options.quick else "fields")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
