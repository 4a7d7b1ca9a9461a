"""Sections `rays` and `view`: training rays a second beside plain torch, where the time goes, and seconds a view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from block_sparse import alternated
from parts import Job
from torch import Tensor
from torch.nn.functional import huber_loss

from compress3d.nerf.compositing import LARGEST_DEPTH, composite, composite_reference
from compress3d.nerf.field import Field
from compress3d.nerf.march import Samples, entry, march_reference
from compress3d.nerf.pixels import draw_pixels
from compress3d.nerf.rays import Rays
from compress3d.nerf.render import render, trace, visible_samples
from compress3d.nerf.units import ROWS
from fields.chair import trained_field
from fields.settings import Settings
from secateur.console import Report, stretch
from secateur.training import generator_at

HOW = (
    "One training step on the same rays of the chair: samples, features, networks, blending, their gradients and "
    "Adam's step, the least of several in turns. Plain torch is the same field by tensor operations alone; it drops "
    "the samples that no light reaches before it asks for gradients, as ours does. Beside it: plain torch that is "
    "given the samples that our kernels find. Stages are timed one by one."
)
HOW_VIEW = "A 400x400 test view of the chair, in front of white: a mean over some of them, the least of several turns."
BAR, VIEW_BAR_SECONDS = 5.0, 2.0


def jobs(settings: Settings) -> dict[str, Job]:
    """The trained field: its occupied cells are those in which most of a training happens."""
    return {"chair": partial(rays_by_second, settings)}


def view_jobs(settings: Settings) -> dict[str, Job]:
    """A part for the whole machine."""
    return {"400x400": partial(seconds_by_view, settings)}


def rays_by_second(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    """Rays a second of ours and of plain torch, and our stages."""
    field = trained_field(settings, stretch(report, 0.0, 0.5))
    count, repeats = (64, 1) if settings.quick else (16384, 5)
    capture = settings.capture
    pixels = draw_pixels(capture, capture.train, count, generator_at(0, 0))
    rays = pixels.rays(field.box)
    wanted = pixels.colors(pixels.backgrounds(None))
    report(0.5, "taking turns")
    runs = {
        "kernels": partial(_step, field, rays, wanted, _ours),
        "plain torch, our samples": partial(_step, field, rays, wanted, _plain_given_samples),
        "plain torch": partial(_step, field, rays, wanted, plain),
    }
    times = alternated(runs, repeats)
    ours = times["kernels"]
    rows = [
        {
            "method": method,
            **time,
            "rays_per_second": 1000 * count / time["ms"],
            "kernels_are_faster": time["ms"] / ours["ms"],
            "kernels_are_faster_by_processor": time["cpu_ms"] / ours["cpu_ms"],
        }
        for method, time in times.items()
    ]
    report(0.9, "stages")
    samples = visible_samples(field, rays)
    stages = alternated(_stages(field, rays, samples), repeats)
    facts = {"rays": count, "samples": len(samples), "bar": BAR}
    return {"how": HOW, **facts, "rows": rows, "stages": [{"stage": name, **time} for name, time in stages.items()]}


def seconds_by_view(settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    """Of a few views, whole and with the rows of least magnitude gone."""
    field = trained_field(settings, stretch(report, 0.0, 0.8))
    views = settings.judging[:: max(1, len(settings.judging) // 4)]
    cameras = settings.capture.cameras
    fields = {"whole": field, "half of the rows": _half(field)}

    def draw(one: Field) -> None:
        for view in views:
            render(one, cameras, view)

    report(0.8, "drawing")
    runs = {name: partial(draw, one) for name, one in fields.items()}
    times = alternated(runs, 1 if settings.quick else 5)
    rows = [
        {
            "field": name,
            "seconds": time["ms"] / 1000 / len(views),
            "processor_seconds": time["cpu_ms"] / 1000 / len(views),
        }
        for name, time in times.items()
    ]
    return {
        "how": HOW_VIEW,
        "bar_seconds": VIEW_BAR_SECONDS,
        "size": [cameras.width, cameras.height],
        "views": len(views),
        "rows": rows,
    }


def _half(field: Field) -> Field:
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in field.groups()}
    worth = field.table.detach().square().sum(dim=1)
    keep[ROWS] = worth > worth.median()
    return field.cut(keep)


Seen = Callable[[Field, Rays], Tensor]
"""(R, 3) colours of rays in front of white."""


def _step(field: Field, rays: Rays, wanted: Tensor, seen: Seen) -> None:
    """A step that leaves the field as it was: its rate is 0."""
    optimizer = torch.optim.Adam(field.parameters(), 0.0, fused=True)
    huber_loss(seen(field, rays), wanted).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _ours(field: Field, rays: Rays) -> Tensor:
    return trace(field, rays)[0].over(torch.ones(3))


def _plain_given_samples(field: Field, rays: Rays) -> Tensor:
    field.plain = True
    try:
        return _blended(field, rays, _found(field, rays))
    finally:
        field.plain = False


def _found(field: Field, rays: Rays) -> Samples:
    field.plain = False
    samples = visible_samples(field, rays)
    field.plain = True
    return samples


def plain(field: Field, rays: Rays) -> Tensor:
    """Colours by tensor operations alone."""
    field.plain = True
    try:
        samples, _ = march_reference(rays, field.occupancy, field.stride, entry(rays, field.stride))
        return _blended(field, rays, _lit(field, rays, samples))
    finally:
        field.plain = False


@torch.no_grad()
def _lit(field: Field, rays: Rays, samples: Samples) -> Samples:
    """The samples that light reaches, as `visible_samples` has them."""
    densities = field.shade(field.features(samples.positions), rays.directions, samples.rays)[0]
    depths = (densities * samples.lengths).double()
    before = depths.cumsum(0) - depths
    first = torch.cat([before, before.new_zeros(1)])[samples.starts[:-1]]
    stays = before - first[samples.rays] < LARGEST_DEPTH
    starts = torch.zeros_like(samples.starts)
    starts[1:] = torch.bincount(samples.rays[stays], minlength=len(rays)).cumsum(0)
    return Samples(starts, samples.distances[stays], samples.lengths[stays], samples.positions[stays])


def _blended(field: Field, rays: Rays, samples: Samples) -> Tensor:
    densities, colors = field.shade(field.features(samples.positions), rays.directions, samples.rays)
    pixels = composite_reference(densities, colors, samples.starts, samples.lengths, samples.distances)
    return pixels.over(torch.ones(3))


def _stages(field: Field, rays: Rays, samples: Samples) -> Mapping[str, Callable[[], Any]]:
    """Our stages, each on what the one before gives."""
    features = field.features(samples.positions).detach().requires_grad_()
    densities, colors = field.shade(features, rays.directions, samples.rays)
    given = (densities.detach().requires_grad_(), colors.detach().requires_grad_())
    to_features, to_both = torch.ones_like(features), (torch.ones_like(densities), torch.ones_like(colors))
    optimizer = torch.optim.Adam(field.parameters(), 0.0, fused=True)

    def encode_back() -> None:
        field.features(samples.positions).backward(to_features)

    def shade_back() -> None:
        torch.autograd.backward(field.shade(features, rays.directions, samples.rays), to_both)

    def blend_back() -> None:
        composite(*given, samples.starts, samples.lengths, samples.distances).colors.sum().backward()

    def adam() -> None:
        for parameter in field.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {
        "finding samples": lambda: visible_samples(field, rays),
        "features": lambda: field.features(samples.positions),
        "features and their gradient": encode_back,
        "networks": lambda: field.shade(features.detach(), rays.directions, samples.rays),
        "networks and their gradient": shade_back,
        "blending and its gradient": blend_back,
        "Adam": adam,
    }
