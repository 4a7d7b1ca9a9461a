"""The page that shows a trained scene beside the photographs that it was judged by."""

from __future__ import annotations

from pathlib import Path

import torch

from compress3d.captures import Capture
from compress3d.splats.photographs import beside_photograph
from compress3d.splats.scene import SplatScene
from compress3d.splats.train import TrainRecord
from secateur.evaluation.run import command_line
from secateur.quantities import format_bytes, format_decibels
from secateur.report.evaluation import listed, machine_details, time_table
from secateur.report.page import (
    Figure,
    Number,
    Page,
    Plot,
    Point,
    Result,
    Table,
    View,
    as_pictures,
    errors_between,
    write_report,
)

PICTURES = 6
"""Photographs that the page shows, of those that the scene is judged by."""

_CURVE_POINTS = 8


def write_training_report(record: TrainRecord, scene: SplatScene, capture: Capture, directory: Path) -> Path:
    """Write `results.json` and `index.html` for a training; returns the page's path.

    Args:
        record: of the training.
        scene: what it made, as its file holds it.
        capture: the photographs; those of the training split are shown where there are none to judge by.
        directory: made when it is not there.
    """
    indices = capture.test if len(capture.test) else capture.train
    shown = torch.linspace(0, len(indices) - 1, min(PICTURES, len(indices))).round().long()
    pairs = [beside_photograph(scene, capture, int(indices[view])) for view in shown]
    renders, photographs = (
        as_pictures([image.cpu().numpy() for image in images]) for images in zip(*pairs, strict=True)
    )
    quality = record.quality
    captions = tuple("" if quality is None else format_decibels(quality.psnr[view]) for view in shown.tolist())
    errors = tuple(errors_between(*pair) for pair in zip(renders, photographs, strict=True))
    result = Result(record.scene.name, _figures(record), renders, errors, captions, _tables(record, capture))
    names = (capture.names[int(indices[view])] for view in shown)
    page = Page(
        record.capture,
        _subtitle(record, capture),
        "Photograph",
        tuple(View(name, image) for name, image in zip(names, photographs, strict=True)),
        (result,),
        (_curve(record),),
        _details(record),
        command=command_line(),
    )
    return write_report(page, record, directory)


def _subtitle(record: TrainRecord, capture: Capture) -> str:
    width, height = capture.cameras.width, capture.cameras.height
    trained = f"A scene trained for {record.fit.steps:,} steps on {record.options['photographs']} photographs"
    if record.quality is None:
        return f"{trained} at {width}x{height}; the capture has no test split to judge it by."
    return f"{trained}, judged by {len(record.quality.psnr)} others that it has never seen, at {width}x{height}."


def _figures(record: TrainRecord) -> tuple[Figure, ...]:
    file, quality = record.scene, record.quality
    figures = [
        Figure("File size", format_bytes(file.bytes)),
        Figure("Gaussians", f"{file.gaussians:,}"),
        Figure("Training", f"{record.seconds['train'] / 60:.1f} min", None, f"{record.fit.steps:,} steps"),
    ]
    if quality is not None:
        views = f"mean of {len(quality.psnr)} test views"
        figures.insert(0, Figure("PSNR", format_decibels(quality.mean_psnr), None, f"against {quality.reference}"))
        figures.insert(1, Figure("SSIM", f"{quality.mean_ssim:.4f}", None, views))
    if file.speed:
        figures.append(Figure("Frames per second", f"{file.speed.frames_per_second:.1f}"))
    return tuple(figures)


def _tables(record: TrainRecord, capture: Capture) -> tuple[Table, ...]:
    tables = [time_table(record.seconds)]
    if record.quality is not None:
        rows = tuple(
            (capture.names[index], Number(format_decibels(psnr), psnr), Number(f"{ssim:.4f}", ssim))
            for index, psnr, ssim in zip(capture.test.tolist(), record.quality.psnr, record.quality.ssim, strict=True)
        )
        total = ("Mean", format_decibels(record.quality.mean_psnr), f"{record.quality.mean_ssim:.4f}")
        tables.insert(0, Table("Quality by photograph", ("Photograph", "PSNR", "SSIM"), rows, total=total))
    return tuple(tables)


def _curve(record: TrainRecord) -> Plot:
    every = max(1, len(record.watched) // _CURVE_POINTS)
    points = tuple(Point(step, psnr, f"{psnr:.1f}") for step, psnr in record.watched[::-1][::every])
    return Plot("Quality as it trained", "step", f"mean PSNR in dB of {record.watched_views}", points)


def _details(record: TrainRecord) -> dict[str, str]:
    options = {name.replace("_", " ").capitalize(): str(value) for name, value in record.options.items()}
    return {**machine_details(record.machine), **options, "Versions": listed(record.versions)}
