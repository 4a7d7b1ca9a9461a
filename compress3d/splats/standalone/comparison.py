"""The page that `secateur splat compress --report-3d` writes: the original and what became of it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from compress3d.splats.compress import Compression
from compress3d.splats.evaluate import SceneFile
from compress3d.splats.scene import SplatScene
from compress3d.splats.standalone.page import PageScene, TooLargeError, write_fitting_page
from compress3d.splats.views import UP, Vector
from secateur.quantities import format_bytes, format_decibels


def write_compression_page(
    path: str | os.PathLike[str],
    records: Sequence[Compression],
    scenes: Sequence[SplatScene],
    original: SplatScene,
    up: Vector = UP,
) -> list[str]:
    """Write a page with the original and its compressions, and return the names of those that do not fit.

    Args:
        path: replaced only when all is written.
        records: one for each compression of the scene.
        scenes: what each of them made, as its file holds it.
        original: the scene before.
        up: world direction that is up.

    Raises:
        TooLargeError: not even the smallest result fits.
        ValueError: a scene cannot be shown.
    """
    before = records[0].original
    pages = [
        PageScene(
            record.budget.name, scene, f"{_sizes(record.compressed)}, {format_decibels(record.quality.mean_psnr)}"
        )
        for record, scene in zip(records, scenes, strict=True)
    ]
    first = PageScene("original", original, _sizes(before))
    shown = write_comparison_page(path, before.name, first, pages, up)
    return [one.name for one in (first, *pages) if one not in shown]


def write_comparison_page(
    path: str | os.PathLike[str],
    title: str,
    original: PageScene,
    results: Sequence[PageScene],
    up: Vector = UP,
) -> tuple[PageScene, ...]:
    """Write a page with as many of the scenes as fit, and return them in the order of their buttons.

    Args:
        path: replaced only when all is written.
        title: of the page.
        original: the first button, where it fits beside all results.
        results: at least one; where they do not fit together, harmonics are left out, then the original, then the
            results of the most Gaussians.
        up: world direction that is up.

    Raises:
        TooLargeError: not even the smallest result fits.
        ValueError: a scene cannot be shown.
    """
    smallest_first = sorted(results, key=lambda one: len(one.scene))
    choices = [(original, *results)]
    for count in range(len(results), 0, -1):
        choices.append(tuple(one for one in results if one in smallest_first[:count]))
    for scenes in choices[:-1]:
        try:
            write_fitting_page(path, title, scenes, up)
            return scenes
        except TooLargeError:
            continue
    write_fitting_page(path, title, choices[-1], up)
    return choices[-1]


def _sizes(file: SceneFile) -> str:
    return f"{file.gaussians:,} Gaussians, {format_bytes(file.bytes)}"
