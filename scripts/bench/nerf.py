"""Measure neural fields: training, speed, HollowNeRF, compression, surfaces; and draw what came out.

Each part is written into the JSON as soon as it is measured, beside what is there already, with the conditions that it
was measured under; so a run can be stopped, and --missing goes on with the parts that the JSON lacks. Trainings of the
chair and the fox go on from their checkpoints.

Sections: chair (after 30 and 90 minutes, and at the end), rays (beside plain torch), view, fox, mesh, compress (rows,
levels, sharing, bits), hollow (HollowNeRF, by size of the tables), collisions (what hollow space costs
the visible) and handover (splats that start from the field).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The package that is measured has this file's name, and Python looks into a script's own folder first.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from command import Bench
from fields import chair, collisions, compress, fox, handover, hollow, mesh, speed
from fields.pictures import draw_all
from fields.settings import Settings
from parts import keep, read_results
from peers import SHARED

from compress3d.nerf.train import STEPS

SECTIONS = {
    "chair": chair.jobs,
    "rays": speed.jobs,
    "view": speed.view_jobs,
    "fox": fox.jobs,
    "mesh": mesh.jobs,
    "compress": compress.jobs,
    "hollow": hollow.jobs,
    "collisions": collisions.jobs,
    "handover": handover.jobs,
}
PACKAGES = ("secateur", "torch", "lightning", "numba", "numpy", "scipy", "zstandard", "open3d-cpu")


BENCH = Bench("nerf", __doc__, SECTIONS, PACKAGES, draw_all)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    settings = Settings(
        options.chair, options.fox, options.fields_at, options.images, options.field, options.steps, options.quick
    )
    BENCH.measure(options, settings)
    measured = read_results(options.output).get("hollow")
    if measured:
        keep(options.output, "claims", "hollow", {"rows": hollow.claims(measured)})
    BENCH.draw_pictures(options)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = BENCH.parser()
    parser.add_argument("--chair", type=Path, help="the chair of NeRF-synthetic (shared/data beside the checkout)")
    parser.add_argument("--fox", type=Path, help="the fox of instant-ngp (shared/data beside the checkout)")
    parser.add_argument("--field", type=Path, help="a trained field of the chair, instead of the bench's own")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the chair's training (default: {STEPS})")
    parser.add_argument("--fields-at", type=Path, help="folder of the fields that the bench trains (under out/)")
    options = BENCH.parse(parser, arguments)
    options.chair = options.chair or SHARED / "data" / "nerf_synthetic" / "chair"
    options.fox = options.fox or SHARED / "data" / "fox"
    # Hardly trained fields must not land among trained ones.
    options.fields_at = options.fields_at or options.scratch / ("fields-quick" if options.quick else "fields")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
