"""What recovery by gradients wins back: PSNR by share and by bytes, from 2 to 50 % of the Gaussians."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job
from settings import Settings, load, quality

from compress3d.splats import read_scene
from compress3d.splats.compress import Budget, Compressor
from compress3d.splats.sizes import scene_bytes
from secateur.console import Report, silent, stretch
from secateur.report.record import to_json

SHARES = (0.5, 0.25, 0.1, 0.05, 0.02)

BUDGETS = {"--size 2MB": Budget(size_bytes=2_000_000), "--psnr 35": Budget(psnr=35.0)}

HOW = (
    "Each share with the default recovery, written as .sog, the last quarter of the steps through that format's "
    "rounding. 'ours' is that file, read back; 'without gradients' is what the recovery began with, in memory. Quality "
    "is on the held-out views. Seconds are those of merging, refitting, recovering, writing and judging; the views of "
    "the original are rendered once for all shares, in the first one's time."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a scene, and a size and a quality held on the first."""
    scenes: dict[str, Job] = {name: partial(_scene, name, settings) for name in settings.scenes}
    return scenes | {"budgets": partial(_budgets, settings.scenes[0], settings)}


def _scene(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    scene, judge = load(name, settings)
    compressor = Compressor(scene, recover=4) if settings.quick else Compressor(scene)
    shares = settings.shares if settings.quick else SHARES
    rows: list[dict[str, Any]] = []
    for number, share in enumerate(shares):
        part = stretch(report, number / len(shares), (number + 1) / len(shares))
        path, budget = folder / "ours.sog", Budget(keep=share)
        start = time.perf_counter()
        _, record = compressor.compress(budget, path, _titled(f"{name} at {share:.0%}", part))
        seconds = time.perf_counter() - start
        row = {"seconds": seconds, "seconds_by_step": record.seconds, "bytes": scene_bytes(path)}
        row |= {"fits": [{"steps": fit.steps, "validations": to_json(fit.validations)} for fit in record.recovery]}
        rows.append({"share": share, "method": "ours"} | row | quality(judge, read_scene(path)))
        begun = compressor.simplify(budget.count(len(scene)), silent)
        rows.append({"share": share, "method": "without gradients"} | quality(judge, begun))
    return {"how": HOW, "gaussians": len(scene), "sh_degree": scene.sh_degree, "rows": rows}


def _budgets(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    """What `--size 2MB` and `--psnr 35` make of a scene."""
    scene, judge = load(name, settings)
    compressor = Compressor(scene, recover=4) if settings.quick else Compressor(scene)
    rows = []
    for number, (asked, budget) in enumerate(BUDGETS.items()):
        path, start = folder / "ours.sog", time.perf_counter()
        _, record = compressor.compress(budget, path, _titled(asked, stretch(report, number / 2, (number + 1) / 2)))
        row = {"asked": asked, "seconds": time.perf_counter() - start, "bytes": scene_bytes(path)}
        own = {"psnr_on_its_own_views": record.quality.mean_psnr, "trials": to_json(record.trials)}
        rows.append(row | own | quality(judge, read_scene(path)))
    return {"scene": name, "gaussians": len(scene), "rows": rows}


def _titled(title: str, report: Report) -> Report:
    return lambda done, doing: report(done, f"{title}: {doing}")
