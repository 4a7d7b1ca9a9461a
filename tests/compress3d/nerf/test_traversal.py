"""Rays through nerfacc's traversal, whose arithmetic a stand-in has, beside the CPU's kernel."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from compress3d.nerf import traversal
from compress3d.nerf.march import entry, march
from compress3d.nerf.rays import Rays
from compress3d.nerf.traversal import march_nerfacc
from tests.compress3d.nerf.elsewhere import elsewhere
from tests.compress3d.nerf.fake_libraries import nerfacc, only
from tests.compress3d.nerf.test_march import (
    CONE,
    STRIDE,
    assert_goes_on_like_the_kernel,
    assert_same_samples,
    some_cells,
    some_rays,
)


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with only(nerfacc=nerfacc()):
        yield


def rays_of_all_kinds() -> Rays:
    """From outside, from inside, along an axis, and past the cube."""
    outside = some_rays(40)
    random = torch.Generator().manual_seed(8)
    directions = torch.nn.functional.normalize(torch.randn(10, 3, generator=random), dim=1)
    along = torch.tensor([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    origins = torch.tensor([[0.4, 0.3, -1.0], [0.4, 2.0, 0.3], [-1.0, 2.0, 0.5]])
    inside = torch.rand(10, 3, generator=random)
    return Rays(torch.cat([outside.origins, inside, origins]), torch.cat([outside.directions, directions, along]))


@pytest.mark.parametrize("share", [1.0, 0.3, 0.003])
@pytest.mark.parametrize("shift", [0.25, 0.5, 0.9])
def test_samples_are_the_kernels(share: float, shift: float) -> None:
    rays, cells = rays_of_all_kinds(), some_cells(share)
    first = entry(rays, STRIDE, shift)
    ours, _ = march(rays, cells, STRIDE, first)
    theirs, onward = march_nerfacc(rays, cells, STRIDE, first)
    assert not bool(torch.isfinite(onward).any())
    assert_same_samples(ours, theirs)


@pytest.mark.parametrize("most", [1, 5])
def test_rays_go_on_where_the_kernel_does(most: int) -> None:
    assert_goes_on_like_the_kernel(march_nerfacc, rays_of_all_kinds(), some_cells(), STRIDE, most, calls=3, unlike=1)


def test_what_the_library_serves() -> None:
    class Some(SimpleNamespace):
        def __len__(self) -> int:
            return int(self.count)

    def some(count: int = 3, is_cuda: bool = True) -> Any:
        return Some(count=count, origins=SimpleNamespace(is_cuda=is_cuda, device=torch.device("cpu")))

    assert traversal.serves(some(), STRIDE)
    assert not traversal.serves(some(), CONE)
    assert not traversal.serves(some(0), STRIDE)
    assert not traversal.serves(some(is_cuda=False), STRIDE)
    with only():
        assert not traversal.serves(some(), STRIDE)


def test_a_library_that_knows_no_limit_is_done_without() -> None:
    before = ModuleType("nerfacc")
    before.__dict__["traverse_grids"] = lambda rays_o, rays_d, binaries, aabbs, near_planes=None: None
    with only(nerfacc=before):
        assert traversal.traversal(torch.device("cpu")) is None


def test_a_library_without_its_kernels_is_done_without() -> None:
    def traverse_grids(*given: object, traverse_steps_limit: int, **options: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'traverse_grids'")

    broken = ModuleType("nerfacc")
    broken.__dict__["traverse_grids"] = traverse_grids
    with only(nerfacc=broken):
        with pytest.warns(UserWarning, match="nerfacc is installed but does not run.*NoneType"):
            assert traversal.traversal(torch.device("cpu")) is None
        assert traversal.traversal(torch.device("cpu")) is None


@pytest.mark.parametrize("served", [False, True])
def test_rays_elsewhere_go_through_the_library_where_that_serves(served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traversal, "serves", lambda rays, stride: served)
    rays, cells, stride = some_rays(20), some_cells(), STRIDE
    wanted, _ = march(rays, cells, stride, entry(rays, stride))
    with elsewhere() as device:
        there = rays.to(device)
        found, _ = march(there, some_cells().to(device), stride, entry(there, stride))
        assert found.positions.device == device
        assert_same_samples(wanted, type(found)(*(getattr(found, name).cpu() for name in found.__slots__)))
