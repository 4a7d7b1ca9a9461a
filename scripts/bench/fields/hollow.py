"""Section `hollow`: HollowNeRF beside the dense grid of our own, for tables of several sizes, at equal training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from parts import Job

from compress3d.captures import Capture
from compress3d.nerf.evaluate import beside_photograph
from compress3d.nerf.field import Field
from compress3d.nerf.hollow_training import Hollowing, train_hollow
from compress3d.nerf.train import FieldTraining, Training, fit_field
from compress3d.photographs import psnr_of_pair
from fields.settings import Settings
from secateur.console import Report, stretch

HOW = (
    "The chair after 1,000 steps of 32,768 samples, on every second test view. In the parts `2^N` photographs "
    "have alpha, as by default: backgrounds are random, and cells outside of the silhouettes are empty from the start, "
    "for both. In the parts `2^N, opaque` they are on white, and nothing says beforehand what is empty. Parameters: "
    "entries of the tables and weights, and for the hollow field in training those of its 64^3 grid, of which its file "
    "keeps a bit a cell. Error in visible space: mean squared over pixels whose alpha is at least a half; elsewhere: "
    "over the others. Share: the most of the mean saliency, C; 0.04 in the publication."
)
CLAIMS = ((0.31, 0.0), (0.56, 1.0))
"""The publication's: share of the parameters, and dB above the dense grid of 2^19 that a hollow one has with it."""

SIZES = (14, 15, 16, 17, 18, 19)
OPAQUE = {14: (0.32, 0.16, 0.08, 0.04), 16: (0.04,), 18: (0.04,)}
"""log2 of the tables -> shares that are tried where photographs are opaque."""

STEPS, SAMPLES = 1000, 1 << 15
SHARE = 0.04


def jobs(settings: Settings) -> dict[str, Job]:
    """A part for each size of the tables, where silhouettes are known, and where they are not."""
    sizes = (10,) if settings.quick else SIZES
    opaque = {10: (SHARE,)} if settings.quick else OPAQUE
    return {f"2^{size}": partial(_size, settings, size, (SHARE,), False) for size in sizes} | {
        f"2^{size}, opaque": partial(_size, settings, size, shares, True) for size, shares in opaque.items()
    }


def _size(
    settings: Settings, log2_table: int, shares: tuple[float, ...], opaque: bool, report: Report, folder: Path
) -> dict[str, Any]:
    capture = settings.opaque if opaque else settings.capture
    training = replace(settings.in_box, log2_table=log2_table)
    training = training if settings.quick else replace(training, samples=SAMPLES)
    rows, wanted = [], (None, *shares)
    for number, share in enumerate(wanted):
        told = stretch(report, number / len(wanted), (number + 1) / len(wanted))
        clock = time.perf_counter(), time.process_time()
        field, facts = _trained(capture, training, share, settings, told)
        spent = {"seconds": time.perf_counter() - clock[0], "processor_seconds": time.process_time() - clock[1]}
        rows.append({"share": share, **facts, **spent, **_judged(field, settings)})
    return {"how": HOW, "log2_table": log2_table, "opaque": opaque, "steps": settings.short(STEPS), "rows": rows}


def _trained(
    capture: Capture, training: Training, share: float | None, settings: Settings, report: Report
) -> tuple[Field, dict[str, Any]]:
    """A dense field, or a hollow one, and what its training says."""
    steps = settings.short(STEPS)
    if share is None:
        module = FieldTraining(capture, training, steps)
        fit_field(module, steps, None, False, report)
        return module.field, {"method": "dense", "parameters_in_training": _parameters(module.field)}
    hollowing = Hollowing(share=share, resolution=8 if settings.quick else 64)
    field, record = train_hollow(capture, steps=steps, training=training, hollowing=hollowing, report=report)
    return field, {
        "method": "HollowNeRF",
        "parameters_in_training": _parameters(field) + hollowing.resolution**3,
        "mean_saliency": record.mean_saliency,
        "salient": record.salient,
        "primal_residuals": [one.primal for one in record.residuals[:: max(1, len(record.residuals) // 10)]],
    }


def _parameters(field: Field) -> int:
    return sum(parameter.numel() for parameter in field.parameters())


def _judged(field: Field, settings: Settings) -> dict[str, Any]:
    """Against the chair's photographs on white; whatever it was trained on."""
    capture, decibels = settings.capture, []
    assert capture.alphas is not None
    errors: dict[str, list[torch.Tensor]] = {"visible": [], "elsewhere": []}
    for view in settings.judging:
        image, photograph = beside_photograph(field, capture, view)
        decibels.append(psnr_of_pair((image, photograph), capture, view))
        square, visible = (image - photograph).square().mean(dim=2), capture.alphas[view] >= 128
        errors["visible"].append(square[visible])
        errors["elsewhere"].append(square[~visible])
    return {
        "psnr": mean(decibels),
        "parameters": _parameters(field),
        "bytes": field.bytes,
        "occupied": field.occupancy.share,
        **{f"error_{where}": float(torch.cat(parts).double().mean()) for where, parts in errors.items()},
    }


def claims(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What holds of the publication's claims, of the rows with silhouettes and of those without.

    Each claim is about a share of the largest dense grid's parameters: the hollow field of most parameters within it,
    and how many dB it is above that grid and above the dense field of its own size.
    """
    return [one for opaque in (False, True) for one in _claims(section, opaque)]


def _claims(section: Mapping[str, Any], opaque: bool) -> Iterator[dict[str, Any]]:
    rows = [
        row | {"log2_table": part["log2_table"]}
        for part in section.values()
        if part.get("opaque") is opaque
        for row in part["rows"]
        if row["share"] in (None, SHARE)
    ]
    dense = {row["log2_table"]: row for row in rows if row["share"] is None}
    if not dense:
        return
    largest = dense[max(dense)]
    for share, gain in CLAIMS:
        within = [
            row
            for row in rows
            if row["share"] is not None and row["parameters_in_training"] <= share * largest["parameters"]
        ]
        if not within:
            continue
        best = max(within, key=lambda row: row["parameters_in_training"])
        yield {
            "opaque": opaque,
            "claimed_share": share,
            "claimed_gain_db": gain,
            "log2_table": best["log2_table"],
            "share_of_parameters": best["parameters_in_training"] / largest["parameters"],
            "dense_log2_table": largest["log2_table"],
            "gain_db": best["psnr"] - largest["psnr"],
            "gain_over_its_own_size_db": best["psnr"] - dense[best["log2_table"]]["psnr"],
        }
