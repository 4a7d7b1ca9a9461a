"""Fields on CUDA, with tiny-cuda-nn and nerfacc and without them, beside the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from compress3d.nerf.compress import compress
from compress3d.nerf.field import Field
from compress3d.nerf.hashgrid import encode
from compress3d.nerf.levels import first_rows, grid_levels
from compress3d.nerf.libraries import library
from compress3d.nerf.march import Samples, Stride, entry, march
from compress3d.nerf.rays import rays_of
from compress3d.nerf.render import orbit_of, render, trace
from compress3d.nerf.train import train
from tests.compress3d.nerf.fake_libraries import only
from tests.compress3d.nerf.fields import QUICK, some_field
from tests.compress3d.nerf.test_hashgrid import some_positions, some_slots, some_table
from tests.compress3d.nerf.test_march import CONE, STRIDE, assert_same_samples, some_cells, some_rays
from tests.compress3d.splats.photographed import photographed

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["torch", "tinycudann", "nerfacc"])
def _library(request: pytest.FixtureRequest) -> Iterator[None]:
    """Plain torch, or one of the libraries."""
    if request.param == "torch":
        with only():
            yield
        return
    found = library(request.param)
    if found is None:
        pytest.skip(f"{request.param} is not installed")
    with only(**{request.param: found}):
        yield


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("features", [1, 2, 3, 4, 8])
def test_features_and_gradients_are_the_cpus(features: int, cut: bool) -> None:
    slots, left = some_slots()
    levels = grid_levels(5, 10, 4, 40)
    assert first_rows(levels)[-1] == len(slots)
    results = []
    for device in ("cpu", "cuda"):
        table = some_table(levels, features, torch.float32)[: left if cut else None].to(device).requires_grad_()
        positions = some_positions(dtype=torch.float32)[:-3].to(device).requires_grad_()
        found = encode(positions, table, levels, slots.to(device) if cut else None)
        slopes = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).to(device)
        results.append([found, *torch.autograd.grad(found, (table, positions), slopes)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-5, atol=1e-5 * float(ours.detach().abs().max()))


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("stride", [STRIDE, CONE])
@pytest.mark.parametrize("most", [3, 1 << 14])
def test_samples_are_the_cpus(stride: Stride, most: int) -> None:
    rays, cells = some_rays(), some_cells()
    first = entry(rays, stride)
    ours, onward = march(rays, cells, stride, first, most)
    found, further = march(rays.to("cuda"), some_cells().to("cuda"), stride, first.to("cuda"), most)
    assert_same_samples(ours, Samples(*(one.cpu() for one in dataclasses.astuple(found))))
    alike = torch.isfinite(onward) == torch.isfinite(further.cpu())
    assert int((~alike).sum()) <= 2
    torch.testing.assert_close(onward[alike], further.cpu()[alike], rtol=1e-4, atol=1e-4)


def solid_field() -> Field:
    field = some_field()
    with torch.no_grad():
        field.density[-1].weight[0] *= 2
    return field


@pytest.mark.usefixtures("_library")
def test_a_field_is_seen_as_on_the_cpu() -> None:
    here, there = solid_field(), solid_field().to("cuda")
    cameras = orbit_of(here.box, 2, 40, 30)
    for ours, theirs in zip(render(here, cameras, 1), render(there, cameras, 1), strict=True):
        error = (ours - theirs.cpu()).abs()
        assert float(error.median()) < 1e-4
        assert float(error.mean()) < 1e-3
    rays = rays_of(cameras, 0, here.box)
    slopes = []
    for field in (here, there):
        pixels, _ = trace(field, rays)
        slopes.append(torch.autograd.grad(pixels.colors.square().sum(), list(field.parameters())))
    for ours, theirs in zip(*slopes, strict=True):
        assert float((ours - theirs.cpu()).norm()) < 1e-2 * float(ours.norm())


@pytest.mark.usefixtures("_library")
def test_training_and_compressing_go_as_on_the_cpu() -> None:
    capture = photographed(16)
    _, ours = train(capture, steps=100, training=QUICK)
    field, theirs = train(capture, steps=100, training=QUICK, device="cuda")
    assert field.device.type == "cuda"
    assert ours.quality is not None and theirs.quality is not None
    assert theirs.quality.mean_psnr == pytest.approx(ours.quality.mean_psnr, abs=1.0)
    small, _, record = compress(field, capture, keep=0.5, bits=8, steps=20, training=QUICK)
    assert small.device.type == "cuda" and record.after is not None
    assert record.after.mean_psnr > theirs.quality.mean_psnr - 2
