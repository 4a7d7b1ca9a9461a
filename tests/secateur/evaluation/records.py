"""Records made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.evaluation.measurements import averaged, counted, rate
from secateur.evaluation.record import Column, EvaluationRecord, Measurement, Part, Run, Subject
from secateur.report.record import Machine

MACHINE = Machine("a processor", 2, 8 * 10**9, None, "Linux 6")


def run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "command": "secateur evaluate a b -o c",
        "secateur": "0.1.0",
        "started_at": "2026-01-02T03:04:05+00:00",
        "seconds": {"judge": 1.5},
        "machine": MACHINE,
        "versions": {"python": "3.11.9"},
        "seeds": {"views": 0},
        "threads": 1,
        "load_average": 0.5,
    }
    return Run(**(fields | changes))


def times(*milliseconds: float) -> Measurement:
    """Frames a second, from the times of repeats."""
    return rate(milliseconds, "frames/s")


def subject(
    name: str,
    *,
    psnr: Sequence[float] | None = None,
    size: int = 1000,
    frame: Sequence[float] = (10.0, 10.1, 9.9),
    sha256: str | None = None,
    **more: Measurement,
) -> Subject:
    """A scene: PSNR view by view, bytes, times."""
    measurements: dict[str, Measurement] = {"size": counted(size, "bytes", "file size"), "rate": times(*frame)}
    parts: Mapping[str, Part] = {}
    if psnr is not None:
        measurements["psnr"] = averaged(psnr, "dB", "PSNR", "higher")
        column = Column(tuple(psnr), "dB", "higher", "PSNR")
        parts = {"views": Part("view", tuple(f"View {n}" for n in range(len(psnr))), {"psnr": column})}
    return Subject(name, f"{name}.ply", sha256 or f"bytes of {name}", 0, {**measurements, **more}, parts)


def record(*candidates: Subject, reference: Subject | None = None, **changes: Any) -> EvaluationRecord:
    fields: dict[str, Any] = {
        "kind": "splat",
        "runs": (run(),),
        "protocol": {"views": 4},
        "reference": reference or subject("whole"),
        "candidates": candidates or (subject("half", psnr=(30.0, 31.0, 32.0, 33.0), size=500),),
    }
    return EvaluationRecord(**(fields | changes))
