"""Augmentation does what its names say, and nothing where it is switched off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.training import generator_at
from tests.contracts import assert_deterministic, assert_same
from vit.augmentation import Augmentation, cutmix, erase, flip, mixup, shift

IMAGES = torch.rand(16, 3, 8, 6, generator=generator_at(0, 0))
LABELS = torch.arange(16) % 4
MAPS = (IMAGES[:, 0] * 4).long()


def test_switched_off_it_changes_nothing() -> None:
    images, labels = Augmentation()(IMAGES, LABELS, 4, generator_at(0, 1))
    assert images is IMAGES and labels is LABELS


@pytest.mark.parametrize(
    "options", [{"shift": 2}, {"flip": 0.5}, {"erase": 0.7}, {"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 1, "cutmix": 1}]
)
def test_the_same_generator_gives_the_same_batch(options: dict[str, Any]) -> None:
    def batch() -> tuple[Tensor, Tensor]:
        return Augmentation(**options)(IMAGES, LABELS, 4, generator_at(5, 2))

    images, _ = assert_deterministic(batch)
    assert images.shape == IMAGES.shape and not torch.equal(images, IMAGES)


def test_maps_move_with_their_images() -> None:
    for images, maps in (shift(IMAGES, MAPS, 3, generator_at(1, 0)), flip(IMAGES, MAPS, 0.5, generator_at(1, 1))):
        assert not torch.equal(maps, MAPS)
        assert_same((images[:, 0] * 4).long(), maps)
    assert shift(IMAGES, LABELS, 3, generator_at(1, 0))[1] is LABELS
    assert flip(IMAGES, LABELS, 0.5, generator_at(1, 1))[1] is LABELS


def test_a_shift_moves_what_is_inside() -> None:
    image = torch.zeros(40, 1, 9, 9)
    image[:, :, 4, 4] = 1
    moved, _ = shift(image, torch.zeros(40), 2, generator_at(0, 0))
    places = moved.flatten(1).argmax(1)
    assert (moved.flatten(1).sum(1) == 1).all()
    assert set((places // 9).tolist()) == set((places % 9).tolist()) == {2, 3, 4, 5, 6}


def test_flips_are_all_or_none_at_the_ends() -> None:
    assert_same(flip(IMAGES, LABELS, 1.0, generator_at(0, 0))[0], IMAGES.flip(-1))
    assert_same(flip(IMAGES, LABELS, 0.0, generator_at(0, 0))[0], IMAGES)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_erased_rectangles_have_the_images_mean(seed: int) -> None:
    images = torch.rand(8, 2, 20, 20, generator=generator_at(seed, 0)) + torch.arange(2.0)[:, None, None]
    erased = erase(images, 1.0, generator_at(seed, 1))
    changed = (erased != images).any(1)
    share = changed.float().mean((1, 2))
    assert (share < 0.27).all() and share.max() > 0  # whole pixels of at most a fifth
    means = images.mean((1, 2, 3))[:, None, None].expand_as(changed)
    for channel in range(2):
        assert_same(erased[:, channel][changed], means[changed])


def test_mixed_labels_are_the_shares_of_mixed_images() -> None:
    # An image's pixels are its class: what a label should be can be read off the image.
    images = torch.nn.functional.one_hot(LABELS, 4).float()[:, :, None, None].expand(16, 4, 8, 6)
    shares = torch.nn.functional.one_hot(LABELS, 4).float()
    for mix, alpha in ((mixup, 0.8), (cutmix, 1.0)):
        mixed, labels = mix(images, shares, alpha, generator_at(3, 0))
        torch.testing.assert_close(mixed.mean((2, 3)), labels, atol=1e-6, rtol=0)
        torch.testing.assert_close(labels.sum(1), torch.ones(16))
        assert ((labels > 0).sum(1) == 2).any()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Augmentation(shift=-1)
    with pytest.raises(ValueError, match="probabilities"):
        Augmentation(flip=1.5)
    with pytest.raises(ValueError, match="know nothing of maps"):
        Augmentation(mixup=1.0)(IMAGES, MAPS, 4, generator_at(0, 0))
