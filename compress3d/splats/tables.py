"""Records of splat scenes as tables, for the terminal and for notebooks."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from compress3d.splats.compress import Compression
from compress3d.splats.evaluate import Evaluation, Quality, SceneFile
from compress3d.splats.train import TrainRecord
from secateur.console import result_table
from secateur.quantities import format_bytes, format_decibels


def compressions_table(records: Sequence[Compression]) -> Table:
    """Before and after, a column for each compression of one scene."""
    before = records[0].original
    table = result_table(before.name, "", "original", *(record.budget.name for record in records))
    _add_files(table, before, [record.compressed for record in records])
    _add_qualities(table, [record.quality for record in records])
    table.add_row("seconds", "", *(f"{sum(record.seconds.values()):.1f}" for record in records))
    return table


def conversion_table(original: SceneFile, converted: SceneFile, seconds: float) -> Table:
    """A scene in two formats, and how long it took from one to the other."""
    table = result_table(original.name, "", "original", "converted")
    _add_files(table, original, [converted])
    table.add_row("seconds", "", f"{seconds:.1f}")
    return table


def evaluation_table(record: Evaluation) -> Table:
    """The reference, and a column for each candidate."""
    table = result_table(record.reference.name, "", "reference", *(one.file.name for one in record.candidates))
    _add_files(table, record.reference, [one.file for one in record.candidates])
    _add_qualities(table, [one.quality for one in record.candidates])
    return table


def training_table(record: TrainRecord) -> Table:
    """A table of the scene and of how close it comes to the photographs."""
    file, quality = record.scene, record.quality
    table = result_table(file.name, "", "")
    table.add_row("Gaussians", f"{file.gaussians:,}")
    table.add_row("spherical-harmonic degree", str(file.sh_degree))
    table.add_row("size", format_bytes(file.bytes))
    if quality is not None:
        views = f"{len(quality.psnr)} test photographs at {quality.width}x{quality.height}"
        table.add_row(f"PSNR against {views}", format_decibels(quality.mean_psnr))
        table.add_row(f"SSIM against {views}", f"{quality.mean_ssim:.4f}")
    if file.speed:
        table.add_row("frames/s", f"{file.speed.frames_per_second:.1f}")
    table.add_row("steps", f"{record.fit.steps:,}")
    table.add_row("seconds", f"{sum(record.seconds.values()):.1f}")
    if record.skipped:
        table.add_row("photographs listed but absent, left out", str(record.skipped))
    return table


def _add_files(table: Table, before: SceneFile, after: list[SceneFile]) -> None:
    files = [before, *after]
    table.add_row("Gaussians", *(f"{file.gaussians:,}" for file in files))
    table.add_row("spherical-harmonic degree", *(str(file.sh_degree) for file in files))
    table.add_row("size", *(format_bytes(file.bytes) for file in files))
    table.add_row("times smaller", "", *(f"{before.bytes / file.bytes:.1f}" for file in after))
    if all(file.speed for file in files):
        table.add_row("frames/s", *(f"{file.speed.frames_per_second:.1f}" for file in files if file.speed))


def _add_qualities(table: Table, qualities: list[Quality]) -> None:
    table.add_row("PSNR against own renders", "", *(format_decibels(quality.mean_psnr) for quality in qualities))
    table.add_row("SSIM against own renders", "", *(f"{quality.mean_ssim:.4f}" for quality in qualities))
