from __future__ import annotations

import pytest
import torch

from compress3d.captures.resample import area_average, premultiplied, reduced_size, straight
from tests.contracts import assert_same


def picture(height: int, width: int, depth: int = 3) -> torch.Tensor:
    return torch.rand(height, width, depth, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("width", "height"), [(5, 3), (7, 5), (12, 9), (1, 1)])
def test_averages_are_those_of_a_far_finer_grid(width: int, height: int) -> None:
    image = picture(9, 12)
    finer = image.repeat_interleave(height, dim=0).repeat_interleave(width, dim=1)
    expected = finer.reshape(height, 9, width, 12, 3).mean(dim=(1, 3))
    torch.testing.assert_close(area_average(image, width, height), expected, atol=1e-6, rtol=0)


def test_the_mean_is_kept() -> None:
    image = picture(31, 47)
    torch.testing.assert_close(area_average(image, 13, 8).mean(dim=(0, 1)), image.mean(dim=(0, 1)), atol=1e-6, rtol=0)


def test_it_never_enlarges() -> None:
    with pytest.raises(ValueError, match="12x9 pixels to 13x9"):
        area_average(picture(9, 12), 13, 9)


@pytest.mark.parametrize("depth", [3, 4])
def test_all_8_bit_values_come_back(depth: int) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    colours, alphas = torch.meshgrid(levels, levels, indexing="ij")
    pixels = torch.stack([colours, colours, colours, alphas][:depth], dim=2)
    back = straight(premultiplied(pixels))
    visible = torch.ones_like(alphas, dtype=torch.bool) if depth == 3 else alphas > 0
    assert_same(back[visible], pixels[visible])


def test_what_nobody_sees_bleeds_into_nothing() -> None:
    """Red that is fully transparent, beside white: the average is half-transparent white, not pink."""
    pixels = torch.tensor([[[255, 0, 0, 0], [255, 255, 255, 255]]], dtype=torch.uint8)
    assert straight(area_average(premultiplied(pixels), 1, 1)).tolist() == [[[255, 255, 255, 128]]]


def test_reduced_sizes() -> None:
    assert reduced_size(1080, 1920, 960) == (540, 960)
    assert reduced_size(100, 50, 400) == (100, 50)
    assert reduced_size(4000, 1, 10) == (10, 1)
    with pytest.raises(ValueError, match="long_side"):
        reduced_size(10, 10, 0)
