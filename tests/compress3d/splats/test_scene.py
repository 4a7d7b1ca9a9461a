"""A splat scene: its checks, its slices, and its face as something prunable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import render
from compress3d.splats.scene import GAUSSIANS, SH_COEFFICIENTS, SplatScene
from secateur.units import Prunable
from tests.contracts import (
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_same,
)


def scene(n: int = 40, degree: int = 1, seed: int = 0) -> SplatScene:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return SplatScene(
        means=normal(n, 3) * 0.5,
        quats=normal(n, 4),
        scales=normal(n, 3) * 0.4 - 2,
        opacities=normal(n),
        sh0=normal(n, 1, 3),
        shN=normal(n, SH_COEFFICIENTS[degree], 3) * 0.1,
    )


def camera() -> Cameras:
    viewmat = torch.eye(4)
    viewmat[2, 3] = 4
    K = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]])
    return Cameras(viewmat[None], K[None], 32, 32)


def test_masks_and_cuts_keep_their_contracts() -> None:
    target: Prunable = scene()
    keep = {GAUSSIANS: torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.4}

    def run(s: SplatScene) -> Tensor:
        return render(s, camera())

    assert_full_keep_changes_nothing(target)
    assert_mask_of_ones_changes_nothing(target, run)
    assert_mask_equals_cut(target, keep, run)


def test_a_mask_ends_with_its_context_even_after_an_error() -> None:
    target = scene()
    before = target.peak_opacities()
    with pytest.raises(RuntimeError), target.masked({GAUSSIANS: torch.zeros(40)}):
        assert target.peak_opacities().max() == 0
        raise RuntimeError
    assert_same(before, target.peak_opacities())


def test_masks_nest() -> None:
    target = scene()
    with target.masked({GAUSSIANS: torch.full((40,), 0.5)}):
        half = target.peak_opacities()
        with target.masked({GAUSSIANS: torch.zeros(40)}):
            pass
        assert_same(half, target.peak_opacities())


def test_masks_are_differentiable() -> None:
    target = scene()
    mask = torch.ones(40, requires_grad=True)
    with target.masked({GAUSSIANS: mask}):
        target.peak_opacities().sum().backward()
    assert mask.grad is not None
    torch.testing.assert_close(mask.grad, torch.sigmoid(target.opacities))


@pytest.mark.parametrize("masks", [{GAUSSIANS: torch.ones(3)}, {}])
def test_a_mask_that_does_not_fit_is_refused(masks: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="'gaussians' the shape"), scene().masked(masks):
        pass


def test_a_keep_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="gaussians"):
        scene().cut({GAUSSIANS: torch.ones(3, dtype=torch.bool)})


def test_select_takes_indices_in_their_order_and_masks() -> None:
    target = scene()
    assert_same(target.select(torch.tensor([5, 2])).means, target.means[[5, 2]])
    mask = torch.arange(40) % 3 == 0
    assert_same(target.select(mask).shN, target.shN[mask])
    assert len(target.select(torch.zeros(40, dtype=torch.bool))) == 0


@pytest.mark.parametrize("degree", range(4))
def test_degrees_and_bytes(degree: int) -> None:
    target = scene(degree=degree)
    assert target.sh_degree == degree
    assert target.bytes_per_gaussian == sum(t[0].numel() * 4 for t in target.tensors().values())
    (group,) = target.groups()
    assert group.size == 40 and float(group.cost["bytes"].sum()) == 40 * target.bytes_per_gaussian
    assert {member.param for member in group.members} == {n for n, t in target.tensors().items() if t.numel()}


def test_changing_the_degree_drops_or_adds_zeros() -> None:
    target = scene(degree=2)
    lower = target.with_sh_degree(1)
    assert_same(lower.shN, target.shN[:, :3].contiguous())
    higher = lower.with_sh_degree(3)
    assert_same(higher.shN[:, :3].contiguous(), lower.shN)
    assert higher.sh_degree == 3 and not bool(higher.shN[:, 3:].any())
    assert target.with_sh_degree(0).shN.shape == (40, 0, 3)
    with pytest.raises(ValueError, match="0 to 3"):
        target.with_sh_degree(4)


def test_replacing_tensors_keeps_the_rest_and_the_flags() -> None:
    target = scene()
    target.antialiased = True
    moved = target.with_tensors(means=target.means + 1)
    assert moved.antialiased and moved.quats is target.quats
    assert target.select(torch.arange(3)).antialiased and target.with_sh_degree(0).antialiased


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("means", torch.zeros(40, 2)),
        ("quats", torch.zeros(39, 4)),
        ("opacities", torch.zeros(40, 1)),
        ("sh0", torch.zeros(40, 3)),
        ("shN", torch.zeros(40, 4, 3)),
        ("scales", torch.zeros(40, 3, dtype=torch.float64)),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(name: str, value: Tensor) -> None:
    with pytest.raises(ValueError, match=name):
        scene().with_tensors(**{name: value})
