"""Measure splat compression against its peers, and draw what came out.

Each part of a section is written into the JSON as soon as it is measured, beside what is there already, with the
conditions that it was measured under; so a run can be stopped, and sections can be run one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from peers import ROOT, find_splat_transform
from plots import draw_all
from sections import codecs, criteria, growth, rasterizer, recover, simplify, size, systems, visibility
from settings import SCENES, Job, Settings

from compress3d.splats.evaluate import PACKAGES
from secateur.console import console, messages, progress_bar, stretch
from secateur.files import replacing_file
from secateur.metrics.speed import pinned_threads
from secateur.report.record import describe_machine, package_versions, to_json

SECTIONS = {
    "simplify": simplify.jobs,
    "criteria": criteria.jobs,
    "recover": recover.jobs,
    "size": size.jobs,
    "systems": systems.jobs,
    "codecs": codecs.jobs,
    "rasterizer": rasterizer.jobs,
    "visibility": visibility.jobs,
    "growth": growth.jobs,
}


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if not options.plots:
        settings = Settings(options.scenes, _peer(), options.limit, options.quick)
        measure(options.only, options.parts, settings, options.output, options.threads)
    for picture in draw_all(read_results(options.output), options.images):
        console.print(f"drew {picture.name}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; lists are names with commas between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_names(SECTIONS), default=tuple(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--scenes", type=_names(SCENES), default=tuple(SCENES), help=f"of {','.join(SCENES)}")
    parser.add_argument("--parts", default="*", help="only the parts whose names match this, such as 'chair: *'")
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


def measure(sections: tuple[str, ...], named: str, settings: Settings, output: Path, threads: int) -> None:
    """Measure section after section, part after part, and keep each in `output`."""
    parts = [
        (section, part, job)
        for section in sections
        for part, job in SECTIONS[section](settings).items()
        if fnmatchcase(part, named)
    ]
    peer = settings.splat_transform.version if settings.splat_transform else None
    with pinned_threads(threads) as used, progress_bar() as report:
        _hold_children_to(used)
        for number, (section, part, job) in enumerate(parts):
            share = stretch(report, number / len(parts), (number + 1) / len(parts))
            record, conditions = _measured(job, lambda done, doing, share=share: share(done, doing))
            facts = {"threads": used, "splat_transform": peer, "quick": settings.quick}
            keep(output, section, part, record | {"conditions": conditions | facts})
    console.print(f"wrote {output.name}")


def keep(output: Path, section: str, part: str, record: dict[str, Any]) -> None:
    """Put one part's record into the JSON; everything else in it stays."""
    results = read_results(output)
    results.setdefault(section, {})[part] = to_json(record)
    with replacing_file(output) as temporary:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """What was measured so far; nothing where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def _measured(job: Job, report: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A part's record, and the conditions that it was measured under."""
    load, start = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as folder:
        record = job(report, Path(folder))
    conditions = {
        "machine": describe_machine(),
        "versions": package_versions(*PACKAGES, "scipy", "plyfile", "zstandard"),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": time.perf_counter() - start,
        "load_average_before": load,
        "load_average_after": os.getloadavg()[0],
    }
    return record, conditions


def _hold_children_to(threads: int) -> None:
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(threads)


def _peer() -> Any:
    try:
        return find_splat_transform()
    except FileNotFoundError as missing:
        messages.print(f"ours alone: {missing}", highlight=False)
        return None


def _names(known: dict[str, Any]) -> Any:
    """A parser of names with commas between."""

    def names(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return chosen

    return names


if __name__ == "__main__":
    main(sys.argv[1:])
