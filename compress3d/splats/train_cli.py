"""What `secateur splat train` does, and how it shows it. Its arguments are in `compress3d/commands.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compress3d.captures import Split, read_capture
from compress3d.captures.points_ply import read_points
from compress3d.devices import device_named
from compress3d.splats.densify import Adaptive, MarkovChain
from compress3d.splats.evaluate import SceneFile
from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.photographs import quality_to_photographs
from compress3d.splats.pruning import PruneAt, radsplat, sundae, to_budget
from compress3d.splats.tables import training_table
from compress3d.splats.train import Training, TrainRecord, train
from compress3d.splats.train_report import training_page, training_record
from compress3d.suffixes import splat_codec
from secateur.console import console, progress_bar, stretch
from secateur.evaluation.evaluator import write
from secateur.evaluation.run import Start
from secateur.interrupts import saying_how_to_go_on
from secateur.quantities import parse_keep


def train_capture(
    capture: Path,
    output: Path,
    steps: int,
    sh_degree: int,
    long_side: int | None,
    split: Split | None,
    strict: bool,
    density: str,
    max_gaussians: int | None,
    prune: str | None,
    keep: str | None,
    start: Path | None,
    antialiased: bool,
    seed: int,
    device: str | None,
    checkpoint: Path | None,
    resume: bool,
    report: Path | None,
) -> TrainRecord:
    """`secateur splat train`."""
    began = Start.now()
    if splat_codec(output.name) is None:
        raise ValueError(f"{output}: no format of splat scenes has this suffix; .ply keeps everything")
    if resume and checkpoint is None:
        raise ValueError("--resume goes on from a checkpoint: say from which with --checkpoint FILE")
    # Now rather than after an hour of training.
    output.parent.mkdir(parents=True, exist_ok=True)
    training = Training(
        sh_degree=sh_degree,
        density=MarkovChain() if density == "mcmc" else Adaptive(),
        pruning=_pruning(prune, keep),
        max_gaussians=max_gaussians,
        antialiased=antialiased,
        seed=seed,
    )
    points = None if start is None else read_points(start)
    with progress_bar() as progress:
        photographs = read_capture(
            capture, strict=strict, split=split, long_side=long_side, report=stretch(progress, 0.0, 0.01)
        )
        photographs = photographs if points is None else replace(photographs, points=points)
        with saying_how_to_go_on(checkpoint):
            scene, record = train(
                photographs,
                steps=steps,
                training=training,
                device=device_named(device),
                checkpoint=checkpoint,
                resume=resume,
                report=stretch(progress, 0.01, 0.99),
            )
        write_scene(scene, output)
        progress(0.99, "judging what was written")
        written, views = read_scene(output), photographs.test.tolist()
        record = replace(
            record,
            scene=SceneFile.describe(output, written, record.scene.speed),
            quality=quality_to_photographs(written, photographs, views) if views else None,
        )
        if report is not None:
            progress(0.99, "drawing the report")
            shared = training_record(record, photographs, [capture, output], began)
            write(shared, training_page(shared, record, written, photographs), report)
    return record


def show_training(record: TrainRecord) -> None:
    """A table of the scene and of how close it comes to the photographs."""
    console.print(training_table(record))


def _pruning(prune: str | None, keep: str | None) -> PruneAt | None:
    if prune == "radsplat":
        if keep is not None:
            raise ValueError("RadSplat prunes by a threshold, so there is no --keep: leave one of the two out")
        return radsplat()
    amount = None if keep is None else parse_keep(keep)
    if prune == "sundae":
        if isinstance(amount, int):
            raise ValueError(f"SUNDAE keeps a share of what has grown, not a count such as --keep {keep}")
        return sundae() if amount is None else sundae(amount)
    return None if amount is None else to_budget(amount)
