"""Section `compress`: what pruning, sharing and few bits cost the chair's field, with and without a short recovery."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts import Job

from compress3d.captures import Capture
from compress3d.nerf.compress import keep_best, score_rows
from compress3d.nerf.evaluate import quality_to_photographs
from compress3d.nerf.field import Field
from compress3d.nerf.files import save_field
from compress3d.nerf.recover import RATE, recover
from compress3d.nerf.rounding import TableRounding, rounding_for
from compress3d.nerf.sharing import share as shared
from compress3d.nerf.units import LEVELS
from fields.chair import trained_field, zipped_bytes
from fields.settings import Settings
from secateur.console import Report
from secateur.importance import Magnitude, Random
from secateur.units import Keep, Scores

HOW = (
    "The chair's trained field. PSNR and SSIM on every second test view: as cut (or rounded), and after 200 steps of "
    "training, which all rows get alike; the row `nothing` has them with nothing gone. Bytes are those of the file, "
    "all that it needs to render; zstd bytes are those of that file packed again by zstd as a whole. Rows of few bits "
    "are packed by zstd in their file. Shared arrays are counted with their seed and scales, not written."
)
STEPS = 200
SHARES = (0.5, 0.25, 0.1)
BITS = (8, 6, 4)

Score = Callable[[Field, Capture], Scores]

CRITERIA: Mapping[str, Score] = {
    "Fisher": lambda field, capture: score_rows(field, capture, "fisher"),
    "magnitude by visits": lambda field, capture: score_rows(field, capture, "visits"),
    "magnitude": lambda field, capture: Magnitude(power=2.0).score(field),
    "random": lambda field, capture: Random(0).score(field),
}


def jobs(settings: Settings) -> dict[str, Job]:
    """A part a method."""
    ways: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {"nothing": nothing}
    ways |= {f"rows: {name}": partial(rows_gone, score) for name, score in CRITERIA.items()}
    ways |= {"levels": levels_gone, "sharing": sharing, "bits": few_bits, "together": together}
    return {name: partial(_part, settings, way) for name, way in ways.items()}


class Bench:
    """The field, and how it is judged.

    Args:
        settings: of this run.
        folder: for files.
    """

    def __init__(self, settings: Settings, report: Report, folder: Path) -> None:
        self.settings, self.file = settings, folder / "field.safetensors"
        self.field, self.capture = trained_field(settings, report), settings.capture
        self.steps = settings.short(STEPS)
        self.training = replace(settings.training, rate=RATE, final_rate=0.1, watch_every=0.5)

    @property
    def shares(self) -> Sequence[float]:
        return SHARES[:1] if self.settings.quick else SHARES

    @property
    def bits(self) -> Sequence[int]:
        return BITS[:1] if self.settings.quick else BITS

    def quality(self, field: Field, prefix: str) -> dict[str, float]:
        """Of a field as it is."""
        quality = quality_to_photographs(field, self.capture, self.settings.judging)
        return {f"{prefix}psnr": quality.mean_psnr, f"{prefix}ssim": quality.mean_ssim}

    def row(self, keep: Keep, bits: int | None = None) -> dict[str, Any]:
        """What is left of the field by `keep` and, where they are given, bits of an entry; trained, and written."""
        small = self.field.cut(keep)
        rounding = None if bits is None else rounding_for(small, bits)
        cut = self.quality(rounded(small, rounding), "cut_")
        recover(small, self.capture, self.steps, rounding=rounding, training=self.training)
        return {**self.size(small, rounding), **cut, **self.quality(small, "")}

    def size(self, field: Field, rounding: TableRounding | None = None) -> dict[str, Any]:
        """Of the field's file."""
        written = save_field(field, self.file, rounding)
        return {
            "bytes": written,
            "zstd_bytes": zipped_bytes(self.file),
            "rows": len(field.table),
            "levels": len(field.levels),
        }

    def all_of_it(self) -> Keep:
        """A budget of everything."""
        return {group.name: torch.ones(group.size, dtype=torch.bool) for group in self.field.groups()}


def _part(
    settings: Settings, way: Callable[[Bench], Iterator[dict[str, Any]]], report: Report, folder: Path
) -> dict[str, Any]:
    bench, rows = Bench(settings, report, folder), []
    for row in way(bench):
        rows.append(row)
        report(1 - 0.7 ** len(rows), " ".join(str(value) for value in list(row.values())[:2]))
    return {"how": HOW, "steps": bench.steps, "views": len(settings.judging), "rows": rows}


def rounded(field: Field, rounding: TableRounding | None) -> Field:
    """A copy whose table is rounded."""
    copy = field.cut({group.name: torch.ones(group.size, dtype=torch.bool) for group in field.groups()})
    if rounding is not None:
        with torch.no_grad():
            copy.table.copy_(rounding.values(rounding.codes(copy.table)))
    return copy


def nothing(bench: Bench) -> Iterator[dict[str, Any]]:
    """The field as it is, and what the short training alone does to it."""
    yield {"method": "nothing", **bench.row(bench.all_of_it())}


def rows_gone(score: Score, bench: Bench) -> Iterator[dict[str, Any]]:
    """Rows of the tables by one criterion."""
    scores = score(bench.field, bench.capture)
    for kept in bench.shares:
        yield {"method": "rows", "share": kept, **bench.row(keep_best(bench.field, scores, kept))}


def levels_gone(bench: Bench) -> Iterator[dict[str, Any]]:
    """Whole levels: those of least Fisher information, and the finest."""
    count = len(bench.field.levels)
    scores = CRITERIA["Fisher"](bench.field, bench.capture)
    finest = scores | {LEVELS: -torch.arange(count, dtype=torch.float32)}
    for method, by in (("Fisher", scores), ("finest first", finest)):
        for left in (count - 1, count - 2, count // 2)[: 1 if bench.settings.quick else 3]:
            yield {"method": method, **bench.row(keep_best(bench.field, by, 1.0, left))}


def sharing(bench: Bench) -> Iterator[dict[str, Any]]:
    """STABLE-RPS: all rows read an array of fewer."""
    for kept in bench.shares:
        small, _, size, _ = shared(bench.field, bench.capture, kept, steps=0)
        cut = bench.quality(small, "cut_")
        small, of, size, _ = shared(bench.field, bench.capture, kept, steps=bench.steps, training=bench.training)
        yield {
            "method": "STABLE-RPS",
            "share": kept,
            "bytes": size,
            "rows": of.size,
            **cut,
            **bench.quality(small, ""),
        }


def few_bits(bench: Bench) -> Iterator[dict[str, Any]]:
    """Entries of few bits: rounded, trained and then rounded, and trained through the rounding."""
    tuned = rounded(bench.field, None)
    recover(tuned, bench.capture, bench.steps, training=bench.training)
    for bits in bench.bits:
        yield {"method": "straight-through", "bits": bits, **bench.row(bench.all_of_it(), bits)}
        rounding = rounding_for(tuned, bits)
        after = rounded(tuned, rounding)
        yield {
            "method": "trained, then rounded",
            "bits": bits,
            **bench.size(after, rounding),
            **bench.quality(after, ""),
        }


def together(bench: Bench) -> Iterator[dict[str, Any]]:
    """What `secateur nerf compress` does: rows by Fisher, then few bits."""
    scores = CRITERIA["Fisher"](bench.field, bench.capture)
    ways = ((0.25, 8), (0.25, 6), (0.1, 6))
    for kept, bits in ways[: 1 if bench.settings.quick else None]:
        yield {
            "method": "Fisher, few bits",
            "share": kept,
            "bits": bits,
            **bench.row(keep_best(bench.field, scores, kept), bits),
        }
