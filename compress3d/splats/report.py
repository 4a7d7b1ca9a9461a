"""The page that shows what compressing a scene did: pictures, sizes, quality and speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from compress3d.cameras import Cameras
from compress3d.splats.compress import Compression
from compress3d.splats.evaluate import Evaluation, Quality, SceneFile
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from secateur.quantities import format_bytes, format_decibels
from secateur.report.page import (
    Errors,
    Figure,
    Image,
    Meter,
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
from secateur.report.record import Machine

if TYPE_CHECKING:
    from secateur.training import FitRecord

PICTURES = 6
"""Views that the page shows, of those that the scene is judged by."""

_LONGER_SIDE = 800


def write_compression_report(
    records: Sequence[Compression],
    scenes: Sequence[SplatScene],
    original: SplatScene,
    cameras: Cameras,
    directory: Path,
) -> Path:
    """Write `results.json` and `index.html` for compressions of one scene; returns the page's path.

    Args:
        records: one for each compression.
        scenes: what each of them made, as its file holds it.
        original: the scene before.
        cameras: the held-out views that the records speak of.
        directory: made when it is not there.
    """
    first = records[0]
    names = [budget_name(record) for record in records]
    pairs = [(record.compressed, record.quality) for record in records]
    seconds = [record.seconds for record in records]
    page = _page(
        first.original,
        f"{first.original.name} compressed: {', '.join(names)}. Judged on {len(cameras)} held-out views that the "
        f"compression never looked through, against {first.quality.reference}.",
        names,
        pairs,
        seconds,
        [record.recovery for record in records],
        _draw(original, scenes, cameras),
        _details(first.machine, first.versions, first.options),
    )
    return write_report(page, records[0] if len(records) == 1 else list(records), directory)


def evaluation_page(record: Evaluation, scenes: Sequence[SplatScene], original: SplatScene, cameras: Cameras) -> Page:
    """The page of an evaluation; arguments as `write_compression_report`."""
    quality = record.candidates[0].quality
    return _page(
        record.reference,
        f"{', '.join(candidate.file.name for candidate in record.candidates)} compared with {record.reference.name} "
        f"on {len(cameras)} views, against {quality.reference}.",
        [candidate.file.name for candidate in record.candidates],
        [(candidate.file, candidate.quality) for candidate in record.candidates],
        [{}] * len(record.candidates),
        [()] * len(record.candidates),
        _draw(original, scenes, cameras),
        _details(record.machine, record.versions, record.options),
    )


def budget_name(record: Compression) -> str:
    """The budget in a few words: "keep 25%", "2 MB", "35 dB"."""
    budget = record.budget
    if budget.size_bytes is not None:
        return f"at most {format_bytes(budget.size_bytes)}"
    if budget.psnr is not None:
        return f"hold {budget.psnr:g} dB"
    if isinstance(budget.keep, int):
        return f"keep {budget.keep:,} Gaussians"
    return f"keep {100 if budget.keep is None else 100 * budget.keep:.6g}%"


class _Drawings(NamedTuple):
    """Pictures of some of the views: their indices, the original's; and for each scene its own and their errors."""

    views: list[int]
    before: tuple[Image, ...]
    after: list[tuple[Image, ...]]
    errors: list[tuple[Errors, ...]]


def _draw(original: SplatScene, scenes: Sequence[SplatScene], cameras: Cameras) -> _Drawings:
    views = torch.linspace(0, len(cameras) - 1, min(PICTURES, len(cameras))).round().long()
    shown = cameras[views]
    factor = _LONGER_SIDE / max(shown.width, shown.height)
    shown = shown.resized(round(shown.width * factor), round(shown.height * factor))
    before = as_pictures(list(render(original, shown).cpu().numpy()))
    after = [as_pictures(list(render(scene, shown).cpu().numpy())) for scene in scenes]
    errors = [tuple(errors_between(*pair) for pair in zip(images, before, strict=True)) for images in after]
    return _Drawings(views.tolist(), before, after, errors)


def _page(
    original: SceneFile,
    subtitle: str,
    names: Sequence[str],
    outcomes: Sequence[tuple[SceneFile, Quality]],
    seconds: Sequence[dict[str, float]],
    recoveries: Sequence[Sequence[FitRecord]],
    drawings: _Drawings,
    details: dict[str, str],
) -> Page:
    results = tuple(
        Result(
            name,
            _figures(original, file, quality),
            drawings.after[index],
            drawings.errors[index],
            tuple(format_decibels(quality.psnr[view]) for view in drawings.views),
            (*_tables(original, file, quality, seconds[index]), *_recovery(recoveries[index])),
        )
        for index, (name, (file, quality)) in enumerate(zip(names, outcomes, strict=True))
    )
    points = tuple(
        Point(file.bytes / 1e6, quality.mean_psnr, name) for name, (file, quality) in zip(names, outcomes, strict=True)
    )
    plot = Plot("Quality over size", "size in MB", "mean PSNR in dB", points, "lower", "higher")
    pictures = zip(drawings.views, drawings.before, strict=True)
    views = tuple(View(f"View {view + 1}", image) for view, image in pictures)
    return Page(original.name, subtitle, "Original", views, results, (plot,), details=details)


def _figures(original: SceneFile, file: SceneFile, quality: Quality) -> tuple[Figure, ...]:
    smaller = f"{original.bytes / file.bytes:.1f} times smaller"
    share = f"{100 * file.gaussians / original.gaussians:.3g} % of them"
    views = f"mean of {len(quality.psnr)} views at {quality.width}x{quality.height}"
    figures = [
        Figure("File size", format_bytes(file.bytes), format_bytes(original.bytes), smaller),
        Figure("Gaussians", f"{file.gaussians:,}", f"{original.gaussians:,}", share),
        Figure("PSNR", format_decibels(quality.mean_psnr), None, f"against {quality.reference}"),
        Figure("SSIM", f"{quality.mean_ssim:.4f}", None, views),
    ]
    if original.speed and file.speed:
        gain = f"{file.speed.frames_per_second / original.speed.frames_per_second:.2f} times as fast"
        rates = [f"{one.frames_per_second:.1f}" for one in (original.speed, file.speed)]
        figures.append(Figure("Frames per second", rates[1], rates[0], gain))
    return tuple(figures)


def _tables(original: SceneFile, file: SceneFile, quality: Quality, seconds: dict[str, float]) -> tuple[Table, ...]:
    tables = [_overview(original, file, quality), *_attributes(original, file), _views(quality)]
    if seconds:
        longest = max(seconds.values())
        rows = tuple((step, Meter(f"{time:.1f} s", time / longest)) for step, time in seconds.items())
        tables.append(Table("Time", ("Step", "Seconds"), rows, total=("Total", f"{sum(seconds.values()):.1f} s")))
    return tuple(tables)


def _overview(original: SceneFile, file: SceneFile, quality: Quality) -> Table:
    rows = [
        ("Gaussians", f"{original.gaussians:,}", f"{file.gaussians:,}"),
        ("Spherical-harmonic degree", str(original.sh_degree), str(file.sh_degree)),
        ("Bytes", f"{original.bytes:,}", f"{file.bytes:,}"),
        *(_per_gaussian(original, file)),
        *(_speeds(original, file, quality)),
        ("PSNR, mean", "reference", format_decibels(quality.mean_psnr)),
        ("SSIM, mean", "reference", f"{quality.mean_ssim:.4f}"),
    ]
    return Table("Before and after", ("", original.name, file.name), tuple(rows))


def _per_gaussian(original: SceneFile, file: SceneFile) -> list[tuple[str, str, str]]:
    each = [f"{one.bytes / max(1, one.gaussians):.1f}" for one in (original, file)]
    return [("Bytes per Gaussian", each[0], each[1])]


def _speeds(original: SceneFile, file: SceneFile, quality: Quality) -> list[tuple[str, str, str]]:
    if not (original.speed and file.speed):
        return []
    size = f"{quality.width}x{quality.height}"
    pair = (original.speed, file.speed)
    rates = [f"{speed.frames_per_second:.2f}" for speed in pair]
    times = [f"{speed.median_ms:.1f} ms" for speed in pair]
    return [(f"Frames per second at {size}", *rates), ("Time of a frame, median", *times)]  # type: ignore[list-item]


def _attributes(original: SceneFile, file: SceneFile) -> list[Table]:
    """Bytes by attribute; two tables where the two formats group the attributes differently."""
    if set(file.bytes_by_attribute) <= set(original.bytes_by_attribute):
        largest = max(original.bytes_by_attribute.values())
        rows = tuple(
            (name, Meter(format_bytes(size), size / largest), format_bytes(file.bytes_by_attribute.get(name, 0)))
            for name, size in original.bytes_by_attribute.items()
        )
        total = ("In all", format_bytes(original.bytes), format_bytes(file.bytes))
        return [Table("Bytes by attribute", ("Attribute", original.name, file.name), rows, total=total)]
    return [_attributes_of(one) for one in (original, file)]


def _attributes_of(file: SceneFile) -> Table:
    rows = tuple(
        (name, Meter(format_bytes(size), size / file.bytes), f"{100 * size / file.bytes:.1f} %")
        for name, size in file.bytes_by_attribute.items()
    )
    total = ("In all", format_bytes(file.bytes), "100 %")
    return Table(f"Bytes by attribute: {file.name}", ("Attribute", "Bytes", "Share"), rows, total=total)


def _views(quality: Quality) -> Table:
    rows = tuple(
        (f"View {index + 1}", format_decibels(psnr), f"{ssim:.4f}")
        for index, (psnr, ssim) in enumerate(zip(quality.psnr, quality.ssim, strict=True))
    )
    note = f"Reference: {quality.reference}, {quality.width}x{quality.height} pixels, white background."
    total = ("Mean", format_decibels(quality.mean_psnr), f"{quality.mean_ssim:.4f}")
    return Table("Quality by view", ("View", "PSNR", "SSIM"), rows, note, total)


def _details(machine: Machine, versions: dict[str, str], options: dict[str, object]) -> dict[str, str]:
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 1e9:.0f} GB of memory"
    details = {
        "Machine": f"{machine.processor}, {machine.cores} cores{memory}",
        "GPU": machine.gpu or "none: rendered on the CPU",
        "System": machine.system,
    }
    details |= {
        name.replace("_", " ").capitalize(): _said(value) for name, value in options.items() if value is not None
    }
    return details | {"Versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def _said(value: object) -> str:
    """An option in a line; those of options in parentheses."""
    if not isinstance(value, dict):
        return str(value)
    parts = (f"{name} ({_said(one)})" if isinstance(one, dict) else f"{name} {one}" for name, one in value.items())
    return ", ".join(parts)


def _recovery(fits: Sequence[FitRecord]) -> list[Table]:
    """PSNR on the validation views as the recovery went; its last fit is through the rounding of the file's format."""
    rows, before = [], 0
    for number, fit in enumerate(fits):
        title = "through the file's rounding" if number else "recovery"
        rows += [(title, str(before + step), format_decibels(score)) for step, score in fit.validations]
        before += fit.steps
    note = "The weights that are kept are those that score best; these views are neither learnt from nor judged by."
    return [Table("Recovery", ("Fit", "Step", "PSNR"), tuple(rows), note)] if rows else []
