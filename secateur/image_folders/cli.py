"""`secateur evaluate` for folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.console import messages, progress_bar
from secateur.evaluation.chunks import ChunkStore
from secateur.evaluation.evaluator import Evaluated
from secateur.evaluation.run import Start
from secateur.image_folders.evaluate import compare_folders
from secateur.image_folders.record import record_of
from secateur.image_folders.report import page_of
from secateur.image_folders.results import Settings


def evaluate_folders(reference: Path, candidates: list[Path], output: Path, **options: Any) -> Evaluated:
    """Measure folders of images against a reference, and draw the page.

    What is finished lies in `unfinished` within `output` until all is: after Ctrl-C or a kill the same call goes on.

    Args:
        reference: folder of the reference images.
        candidates: folders to compare with it.
        output: where finished chunks are kept.
        options: fields of `Settings`.

    Raises:
        KeyboardInterrupt: says where finished images are.
        ValueError: as `compare_folders`.
    """
    start = Start.now()
    settings = Settings(**options)
    store = ChunkStore.within(output, settings.workers)
    with progress_bar() as progress, store.kept_when_stopped():
        found = compare_folders(reference, candidates, store, settings, progress)
        progress(0.95, "drawing the report")
        record = record_of(found, start, settings)
        page = page_of(found, record)
    store.clear()
    for metric, how in found.missing.items():
        messages.print(f"not measured: {metric}: {how}", highlight=False, markup=False, soft_wrap=True)
    return Evaluated(record, page)
