"""A record and a page as an evaluation of three candidates makes them, for the tests of pages."""

from __future__ import annotations

import math

import numpy as np

from secateur.evaluation.measurements import averaged, counted, mean_of
from secateur.evaluation.record import Column, EvaluationRecord, Measurement, Noise, Pair, Part, Run, Subject
from secateur.metrics.interval import Interval
from secateur.report.page import Drawing, Image, Page, Result, View, errors_between
from secateur.report.record import Machine

VIEWS = 5
NAMES = ("keep 50%", "keep 25%", "keep 10%", "dearer and worse")
REFERENCE = "chair.sog"

_PSNR = (39.6, 31.6, 27.7, 27.0)
_BYTES = (655_066, 332_318, 114_051, 700_000)
_FRAME_MS = (142.5, 91.7, 55.9, 150.0)


def record(name: str = "") -> EvaluationRecord:
    """A record of one reference and four candidates, whose names begin with `name`."""
    machine = Machine("A processor", 2, 8_000_000_000, None, "Linux 6.1")
    run = Run(
        f"secateur evaluate {name}chair.sog a.sog b.sog -o out",
        "0.1.0",
        "2026-11-21T16:40:00+00:00",
        {"read": 0.4, "judge": 12.5},
        machine,
        {"python": "3.11.7", "torch": "2.13.0"},
        {"views": 0},
        1,
        0.42,
    )
    reference = Subject(name + REFERENCE, measurements=_costs(1_306_822, 208.0), parts={"attributes": _attributes(1.0)})
    candidates = tuple(_candidate(name, index) for index in range(len(NAMES)))
    difference = Interval(0.7, -0.2, 1.6, 0.95, VIEWS)
    pairs = (Pair("psnr", candidates[2].name, candidates[3].name, difference),)
    return EvaluationRecord(
        kind="splat",
        runs=(run,),
        protocol={"compared_with": "the original's own renders", "views": VIEWS},
        reference=reference,
        candidates=candidates,
        pairs=pairs,
    )


def page(name: str = "") -> Page:
    """The domain's part of the page: pictures of each view, errors, a drawing."""
    originals = [_picture(index, 0) for index in range(VIEWS)]
    results = []
    for number, own in enumerate(NAMES):
        images = tuple(_picture(index, 20 * (number + 1)) for index in range(VIEWS))
        errors = tuple(errors_between(one, other) for one, other in zip(images, originals, strict=True))
        captions = tuple(f"{psnr:.2f} dB" for psnr in _psnrs(number))
        drawing = Drawing("Tokens that are left", _picture(7, 100), "Grey patches are gone.")
        results.append(Result(name + own, (), images, errors, captions, (), (drawing,)))
    views = tuple(View(f"View {index + 1}", image) for index, image in enumerate(originals))
    return Page(f"{name}chair", f"{name}four of a chair", "Original", views, tuple(results))


def _candidate(name: str, index: int) -> Subject:
    psnrs = _psnrs(index)
    measurements = {
        "psnr": averaged(psnrs, "dB", "PSNR", "higher"),
        "accuracy": mean_of(
            0.9 - 0.01 * index,
            "share",
            "accuracy",
            "higher",
            samples=1000,
            error=0.003,
            change=Interval(-0.01 * index, -0.01 * index - 0.004, -0.01 * index + 0.004, 0.95, 1000),
        ),
        **_costs(_BYTES[index], _FRAME_MS[index]),
    }
    rows = tuple(f"View {view + 1}" for view in range(VIEWS))
    parts = {
        "views": Part("view", rows, {"psnr": Column(psnrs, "dB", "higher", "PSNR")}),
        "attributes": _attributes(_BYTES[index] / 1_306_822),
    }
    return Subject(name + NAMES[index], measurements=measurements, parts=parts)


def _psnrs(index: int) -> tuple[float, ...]:
    return tuple(_PSNR[index] + 2.0 * math.sin(3.0 * view) for view in range(VIEWS))


def _costs(size: int, frame_ms: float) -> dict[str, Measurement]:
    times = (0.98 * frame_ms, frame_ms, 1.05 * frame_ms)
    return {
        "size": counted(size, "bytes", "file size"),
        "macs": counted(27.0 * size, "", "multiply-adds"),
        "sh_degree": counted(2, "", "SH degree", "neither"),
        "frame": Measurement(frame_ms, "ms", "lower", "time of a frame", False, 3, Noise("repeats", 7.0, times)),
    }


def _attributes(share: float) -> Part:
    sizes = tuple(share * size for size in (167_000.0, 108_000.0, 782_000.0))
    columns = {"attribute_bytes": Column(sizes, "bytes", "lower", "bytes")}
    return Part("attribute", ("means", "quats", "shN"), columns)


def _picture(seed: int, noise: int) -> Image:
    """Waves, and noise over them."""
    rows, columns = np.mgrid[:90, :120]
    waves = 110 + 90 * np.sin(rows / (5 + seed)) * np.cos(columns / (9 - seed))
    colours = np.stack([waves, np.roll(waves, 12, 1), np.roll(waves, 30, 0)], -1)
    random = np.random.default_rng(seed).integers(-noise, noise + 1, colours.shape)
    return np.asarray(np.clip(colours + random, 0, 255), np.uint8)
