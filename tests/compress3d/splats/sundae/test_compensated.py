"""A compensated scene is its scene until it is trained, and prunable with its features."""

from __future__ import annotations

import pytest
import torch

from compress3d.splats.compensation import CompensationHead, FeatureHead, GainUNet
from compress3d.splats.rasterize import rasterization, render
from compress3d.splats.scene import GAUSSIANS
from compress3d.splats.sundae import CompensatedScene
from compress3d.splats.sundae.compensated import FEATURES, splat
from secateur.importance import Magnitude
from tests.compress3d.splats.sundae.scenes import ORIGINAL, VIEWS, stirred
from tests.contracts import assert_same

GREY = (0.2, 0.5, 0.7)
HEADS = pytest.mark.parametrize("head", [FeatureHead(3, 4), GainUNet(1)], ids=lambda head: head.name)


@HEADS
def test_before_training_it_is_the_scene_bit_for_bit(head: CompensationHead) -> None:
    start = CompensatedScene.start(ORIGINAL, head)
    assert_same(render(ORIGINAL, VIEWS, GREY), start.render(VIEWS, GREY).detach())


def test_without_the_head_it_is_the_scene_bit_for_bit() -> None:
    compensated = stirred()
    both = list(compensated.render_both(VIEWS, GREY))
    assert_same(render(ORIGINAL, VIEWS, GREY), torch.stack([images.without_head for images in both]).detach())
    assert not torch.equal(both[0].with_head, both[0].without_head)


def test_features_are_blended_with_the_weights_of_the_colours() -> None:
    features = torch.randn(len(ORIGINAL), 5, generator=torch.Generator().manual_seed(1))
    splatted = splat(ORIGINAL, features, VIEWS[2], GREY)
    images, alphas, _ = rasterization(
        ORIGINAL.means, ORIGINAL.quats, ORIGINAL.scales.exp(), ORIGINAL.peak_opacities(), features,
        VIEWS[2].viewmats, VIEWS[2].Ks, VIEWS.width, VIEWS.height,
    )  # fmt: skip
    torch.testing.assert_close(splatted.features, images[0])
    torch.testing.assert_close(splatted.alpha, alphas[0])
    alone = splat(ORIGINAL, features[:, :0], VIEWS[2], GREY)
    assert_same(alone.image, splatted.image)
    assert_same(alone.alpha, splatted.alpha)
    assert alone.features.shape == (VIEWS.height, VIEWS.width, 0)


def test_gradients_reach_scene_features_and_head() -> None:
    compensated = stirred()
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in compensated.tensors().items()}
    features = tensors.pop(FEATURES)
    moved = CompensatedScene(ORIGINAL.with_tensors(**tensors), features, compensated.head)
    (moved.render(VIEWS[:1]) - 0.3).square().mean().backward()
    for tensor in (*tensors.values(), features, *compensated.head.parameters()):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().sum()) > 0


@HEADS
def test_mask_equals_cut(head: CompensationHead) -> None:
    compensated = stirred(head)
    keep = {GAUSSIANS: torch.rand(len(compensated), generator=torch.Generator().manual_seed(3)) < 0.4}
    small = compensated.cut(keep)
    assert len(small) == int(keep[GAUSSIANS].sum()) == len(small.features)
    with compensated.masked({GAUSSIANS: keep[GAUSSIANS].float()}):
        torch.testing.assert_close(compensated.render(VIEWS[:2]), small.render(VIEWS[:2]), atol=1e-5, rtol=0)


def test_a_mask_of_ones_and_a_whole_cut_change_nothing() -> None:
    compensated = stirred()
    before = compensated.render(VIEWS[:1]).detach()
    with compensated.masked({GAUSSIANS: torch.ones(len(compensated))}):
        assert_same(before, compensated.render(VIEWS[:1]).detach())
    whole = compensated.cut({GAUSSIANS: torch.ones(len(compensated), dtype=torch.bool)})
    assert_same(before, whole.render(VIEWS[:1]).detach())


def test_a_cut_scene_has_a_head_of_its_own() -> None:
    compensated = stirred()
    cut = compensated.cut({GAUSSIANS: torch.ones(len(compensated), dtype=torch.bool)})
    before = compensated.render(VIEWS[:1]).detach()
    with torch.no_grad():
        next(cut.head.parameters()).add_(1.0)
    assert_same(before, compensated.render(VIEWS[:1]).detach())


def test_features_belong_to_the_gaussians() -> None:
    (group,) = stirred().groups()
    assert {member.param for member in group.members} == set(stirred().tensors())
    assert float(group.cost["bytes"][0]) == ORIGINAL.bytes_per_gaussian + 4 * 3
    (plain,) = stirred(GainUNet(1)).groups()
    assert FEATURES not in {member.param for member in plain.members}
    scores = Magnitude().score(stirred())[GAUSSIANS]
    assert scores.shape == (len(ORIGINAL),)


def test_features_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="features must be float32"):
        CompensatedScene(ORIGINAL, torch.zeros(len(ORIGINAL), 2), FeatureHead(3))
    with pytest.raises(ValueError, match="float64"):
        CompensatedScene(ORIGINAL, torch.zeros(len(ORIGINAL), 3, dtype=torch.float64), FeatureHead(3))
