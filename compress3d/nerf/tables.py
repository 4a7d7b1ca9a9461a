"""Records of neural fields as tables, for the terminal and for notebooks."""

from __future__ import annotations

from rich.table import Table

from compress3d.nerf.compress import CompressRecord
from compress3d.nerf.evaluate import FieldEvaluation
from compress3d.nerf.hollow_training import HollowRecord
from compress3d.nerf.train import TrainRecord
from compress3d.splats.evaluate import Quality
from secateur.console import result_table
from secateur.quantities import format_bytes, format_decibels


def training_table(record: TrainRecord) -> Table:
    """A table of the field and of how close it comes to the photographs."""
    table = result_table(record.capture, "", "")
    table.add_row("size", format_bytes(record.bytes))
    add_quality(table, record.quality)
    table.add_row("seconds a view", f"{record.speed.median_ms / 1000:.2f}")
    table.add_row("steps", f"{record.fit.steps:,}")
    table.add_row("rays", f"{record.rays:,}")
    table.add_row("rays/s", f"{record.rays / max(record.seconds['train'], 1e-9):,.0f}")
    table.add_row("seconds", f"{sum(record.seconds.values()):.1f}")
    add_skipped(table, record.skipped)
    return table


def evaluation_table(record: FieldEvaluation) -> Table:
    """A table of how close the field comes to the photographs."""
    table = result_table(record.name, "", "")
    table.add_row("size", format_bytes(record.bytes))
    add_quality(table, record.quality)
    table.add_row("seconds a view", f"{record.speed.median_ms / 1000:.2f}")
    add_skipped(table, record.skipped)
    return table


def compression_table(record: CompressRecord) -> Table:
    """A table of the field before and after."""
    table = result_table(record.capture, "", "before", "cut", "after")
    ratio = record.bytes_before / record.bytes
    table.add_row("bytes", format_bytes(record.bytes_before), "", f"{format_bytes(record.bytes)} ({ratio:.1f}x)")
    table.add_row("rows", f"{record.rows[0]:,}", "", f"{record.rows[1]:,}")
    table.add_row("levels", str(record.levels[0]), "", str(record.levels[1]))
    if record.before is not None and record.cut is not None and record.after is not None:
        three = (record.before, record.cut, record.after)
        views = f"{len(record.before.psnr)} test views ({record.before.reference})"
        table.add_row(f"PSNR of {views}", *(format_decibels(one.mean_psnr) for one in three))
        table.add_row("SSIM", *(f"{one.mean_ssim:.4f}" for one in three))
    table.add_row("seconds", "", "", f"{sum(record.seconds.values()):.1f}")
    return table


def hollow_table(record: HollowRecord) -> Table:
    """A table of what is hollow, and of the two parts of the training."""
    table = result_table("trained hollow", "", "")
    add_hollow(table, record)
    losses = {"under the saliency grid": record.bound, "after it": record.plain}
    for part, fit in losses.items():
        if fit.losses:
            table.add_row(f"last loss {part}", f"{fit.losses[-1][1]:.4g}")
    table.add_row("seconds", f"{record.bound.seconds + record.plain.seconds:.1f}")
    return table


def add_hollow(table: Table, record: HollowRecord) -> None:
    """Rows of how hollow a field is, and of the steps that made it so."""
    table.add_row("mean saliency", f"{record.mean_saliency:.4f}")
    table.add_row("vertices that are salient", f"{record.salient:.2%}")
    table.add_row("steps", f"{record.bound.steps + record.plain.steps:,}")


def add_quality(table: Table, quality: Quality | None) -> None:
    """Rows of how close pictures come to photographs, where that was measured."""
    if quality is None:
        return
    views = f"{len(quality.psnr)} photographs at {quality.width}x{quality.height}"
    table.add_row(f"PSNR against {views}", format_decibels(quality.mean_psnr))
    table.add_row(f"SSIM against {views}", f"{quality.mean_ssim:.4f}")


def add_skipped(table: Table, skipped: int) -> None:
    """A row of the photographs that were not there, if some were not."""
    if skipped:
        table.add_row("photographs listed but absent, left out", str(skipped))
