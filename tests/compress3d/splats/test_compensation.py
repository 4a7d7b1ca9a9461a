"""The heads: nothing changes before training, everything may after, and the U-Net is the released one's size."""

from __future__ import annotations

import pytest
import torch

from compress3d.splats.compensation import HEADS, CompensationHead, FeatureHead, GainUNet, Splatted
from tests.contracts import assert_deterministic, assert_same

HEADS_TESTED = pytest.mark.parametrize("head", [FeatureHead(5, 6), GainUNet(2)], ids=lambda head: head.name)


def drawn(channels: int, height: int = 21, width: int = 18) -> Splatted:
    random = torch.Generator().manual_seed(2)
    alpha = torch.rand(height, width, 1, generator=random)
    background = torch.rand(3, generator=random)
    image = alpha * torch.rand(height, width, 3, generator=random) + (1 - alpha) * background
    return Splatted(image, alpha, torch.randn(height, width, channels, generator=random), background)


@HEADS_TESTED
def test_an_untrained_head_is_the_identity_bit_for_bit(head: CompensationHead) -> None:
    splatted = drawn(head.features)
    assert_same(splatted.image, head(splatted).detach())


@HEADS_TESTED
def test_gradients_reach_the_last_layer_first_and_then_all(head: CompensationHead) -> None:
    splatted = drawn(head.features)
    own = head.built(head.settings())
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (own(splatted) - 0.5).square().mean().backward()
        optimizer.step()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in own.parameters() if parameter.grad is not None)
    assert not torch.equal(own(splatted), splatted.image)


@HEADS_TESTED
def test_a_head_is_built_from_its_settings_and_its_seed(head: CompensationHead) -> None:
    assert_deterministic(lambda: dict(type(head)(**head.settings()).state_dict()))
    assert_same(dict(head.built(head.settings()).state_dict()), dict(head.state_dict()))
    other = type(head)(**head.settings(), seed=1)  # type: ignore[call-arg]
    assert any(not torch.equal(other.state_dict()[name], tensor) for name, tensor in head.state_dict().items())
    with pytest.raises(ValueError, match=head.name):
        head.built({"depth": 3})
    assert type(head) in HEADS


def test_the_gain_unet_has_the_parameters_of_the_released_one() -> None:
    with torch.device("meta"):
        whole = GainUNet()
    assert sum(parameter.numel() for parameter in whole.parameters()) == 7_783_043
    assert sum(parameter.numel() for parameter in GainUNet(4).parameters()) == 30_683
    assert sum(parameter.numel() for parameter in FeatureHead().parameters()) == 4_644


def test_the_feature_head_sees_features_three_pixels_away() -> None:
    head = FeatureHead(2, 4)
    torch.nn.init.ones_(head.last.weight)
    features = torch.zeros(15, 15, 2)
    changed = features.clone()
    changed[7, 7] = 30.0
    splatted = Splatted(torch.zeros(15, 15, 3), torch.zeros(15, 15, 1), features, torch.zeros(3))
    difference = (head(splatted._replace(features=changed)) - head(splatted)).abs().sum(dim=2) > 0
    rows, columns = difference.nonzero().unbind(dim=1)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (4, 10, 4, 10)


def test_what_a_feature_head_learns_holds_in_front_of_any_background() -> None:
    """Its answer is colours on black with an alpha: images on two backgrounds differ by what shines through."""
    head = FeatureHead(2, 4)
    torch.nn.init.normal_(head.last.weight, generator=torch.Generator().manual_seed(1))
    seen = drawn(2)
    on_black = seen.image - (1 - seen.alpha) * seen.background

    def on(background: float) -> torch.Tensor:
        behind = torch.full((3,), background)
        return head(seen._replace(image=on_black + (1 - seen.alpha) * behind, background=behind)).detach()

    torch.testing.assert_close(on(0.5), (on(0.0) + on(1.0)) / 2)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FeatureHead(0)
    with pytest.raises(ValueError, match="at least 1"):
        GainUNet(0)
    with pytest.raises(ValueError, match="8x8"):
        GainUNet(1)(drawn(0, 7, 9))
