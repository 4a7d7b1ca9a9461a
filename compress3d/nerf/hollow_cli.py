"""`secateur nerf hollow`: a field that learns where it is hollow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from compress3d.captures import Split, read_capture
from compress3d.devices import device_named
from compress3d.nerf.cli import check_writing
from compress3d.nerf.evaluate import judge_trained
from compress3d.nerf.files import save_field
from compress3d.nerf.hollow_training import Hollowing, HollowRecord, train_hollow
from compress3d.nerf.tables import add_hollow, add_quality, add_skipped
from compress3d.nerf.train import PACKAGES, Training
from compress3d.splats.evaluate import Quality
from compress3d.training import plain_settings
from secateur.console import console, progress_bar, result_table, stretch
from secateur.interrupts import saying_how_to_go_on
from secateur.metrics.speed import Speed
from secateur.quantities import format_bytes
from secateur.report.notebook import table_html
from secateur.report.record import Machine, Steps, describe_machine, package_versions


@dataclass(frozen=True, slots=True)
class HollowedField:
    """A field that was trained hollow.

    Args:
        capture: name of the photographs.
        bytes: of its file.
        occupied: share of the cells that rays look into.
        hollow: what its training did.
        quality: against the photographs of the test split; None without any.
        speed: of rendering a view.
        skipped: photographs that the capture lists but does not have.
        seconds: time by step.
        machine: where it ran.
        versions: of the packages that matter.
        options: the settings.
    """

    capture: str
    bytes: int
    occupied: float
    hollow: HollowRecord
    quality: Quality | None
    speed: Speed
    skipped: int
    seconds: dict[str, float]
    machine: Machine
    versions: dict[str, str]
    options: dict[str, object]

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        return table_html(hollowed_table(self))


def hollow_capture(
    capture: Path,
    output: Path,
    steps: int,
    levels: int,
    log2_table: int,
    share: float,
    long_side: int | None,
    split: Split | None,
    strict: bool,
    seed: int,
    checkpoint: Path | None,
    resume: bool,
    device: str | None = None,
) -> HollowedField:
    """`secateur nerf hollow`."""
    check_writing(output, checkpoint, resume)
    where = device_named(device)
    training, hollowing = Training(levels=levels, log2_table=log2_table, seed=seed), Hollowing(share=share)
    clock = Steps()
    with progress_bar() as progress:
        photographs = read_capture(
            capture, strict=strict, split=split, long_side=long_side, report=stretch(progress, 0.0, 0.01)
        )
        with saying_how_to_go_on(checkpoint), clock("train"):
            field, record = train_hollow(
                photographs,
                steps=steps,
                training=training,
                hollowing=hollowing,
                device=where,
                checkpoint=checkpoint,
                resume=resume,
                report=stretch(progress, 0.01, 0.98),
            )
        written = save_field(field, output)
        with clock("judge"):
            quality, speed = judge_trained(field, photographs, stretch(progress, 0.98, 1.0))
    return HollowedField(
        capture=photographs.name,
        bytes=written,
        occupied=field.occupancy.share,
        hollow=record,
        quality=quality,
        speed=speed,
        skipped=photographs.skipped,
        seconds=clock.seconds,
        machine=describe_machine(),
        versions=package_versions(*PACKAGES),
        options={"steps": steps, "device": str(where), **plain_settings(training), **plain_settings(hollowing)},
    )


def hollowed_table(record: HollowedField) -> Table:
    """A table of the field, of what is hollow, and of how close it comes to the photographs."""
    table = result_table(record.capture, "", "")
    table.add_row("size", format_bytes(record.bytes))
    add_quality(table, record.quality)
    add_hollow(table, record.hollow)
    table.add_row("cells that rays look into", f"{record.occupied:.2%}")
    table.add_row("seconds a view", f"{record.speed.median_ms / 1000:.2f}")
    table.add_row("seconds", f"{sum(record.seconds.values()):.1f}")
    add_skipped(table, record.skipped)
    return table


def show_hollow(record: HollowedField) -> None:
    """Print that table."""
    console.print(hollowed_table(record))
