from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.captures import Capture
from tests.contracts import assert_same


def capture(count: int = 6, alpha: bool = True, width: int = 8, height: int = 6) -> Capture:
    generator = torch.Generator().manual_seed(0)
    viewmats = torch.eye(4).repeat(count, 1, 1)
    viewmats[:, 0, 3] = -torch.arange(count).float()
    Ks = torch.tensor([[9.0, 0, 4], [0, 9, 3], [0, 0, 1]]).repeat(count, 1, 1)
    pixels = torch.randint(0, 256, (count, height, width, 5), dtype=torch.uint8, generator=generator)
    return Capture(
        "test",
        Cameras(viewmats, Ks, width, height),
        pixels[..., :3],
        tuple(f"{i}.png" for i in range(count)),
        torch.tensor([i for i in range(count) if i % 4]),
        torch.arange(0, count, 4),
        alphas=pixels[..., 3] if alpha else None,
        masks=pixels[..., 4] if alpha else None,
    )


def test_transparent_pixels_show_the_background() -> None:
    scene = capture()
    alpha, colours = scene.alphas[2, ..., None] / 255, scene.images[2] / 255
    torch.testing.assert_close(scene.image(2), colours * alpha + 1 - alpha)
    torch.testing.assert_close(scene.image(2, (0.0, 0.0, 0.0)), colours * alpha)
    blue = torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(scene.image(2, blue), colours * alpha + blue * (1 - alpha))
    torch.testing.assert_close(replace(scene, background=(0.0, 0.0, 0.0)).image(2), colours * alpha)


def test_opaque_photographs_are_the_8_bit_pixels() -> None:
    scene = capture(alpha=False)
    assert scene.mask(0) is None
    assert_same((scene.image(3, (0.2, 0.3, 0.4)) * 255).round().to(torch.uint8), scene.images[3])


def test_a_subset_keeps_what_belongs_together() -> None:
    scene = capture()
    part = scene.subset([4, 1, 5])
    assert part.names == ("4.png", "1.png", "5.png")
    assert part.train.tolist() == [1, 2] and part.test.tolist() == [0]
    assert_same([part.image(0), part.mask(2)], [scene.image(4), scene.mask(5)])
    assert_same(part.cameras.viewmats[1], scene.cameras.viewmats[1])
    assert_same(scene.subset(scene.test).images, scene.images[[0, 4]])
    assert len(scene.subset([])) == 0
    assert scene.subset(torch.arange(6) > 3).names == ("4.png", "5.png")


def test_the_scale_is_that_of_gsplat() -> None:
    assert capture(5).cameras.extent == pytest.approx(1.1 * 2)


def test_resized_photographs_average_what_is_seen() -> None:
    scene = capture()
    small = scene.resized(factor=0.5)
    assert (small.cameras.width, small.cameras.height) == (4, 3)
    assert_same(small.cameras.Ks[0], torch.tensor([[4.5, 0, 2], [0, 4.5, 1.5], [0, 0, 1]]))
    expected = scene.image(1).reshape(3, 2, 4, 2, 3).mean(dim=(1, 3))
    torch.testing.assert_close(small.image(1), expected, atol=0.6 / 255 + 0.6 / 255, rtol=0)
    masks = scene.mask(1).reshape(3, 2, 4, 2).mean(dim=(1, 3))
    torch.testing.assert_close(small.mask(1), masks, atol=0.51 / 255, rtol=0)


def test_resizing_to_the_same_size_or_more_changes_nothing() -> None:
    scene = capture()
    assert scene.resized(factor=1.0) is scene
    assert scene.resized(long_side=900) is scene
    assert scene.resized(long_side=4).cameras.width == 4


@pytest.mark.parametrize(
    "arguments", [{}, {"factor": 0.5, "long_side": 3}, {"factor": 0}, {"factor": 2}, {"long_side": 0}]
)
def test_sizes_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"factor|long_side"):
        capture().resized(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(6, 6, 8, 3)}, "images must be uint8"),
        ({"alphas": torch.zeros(6, 8, 6, dtype=torch.uint8)}, "alphas must be uint8"),
        ({"names": ("a",)}, "names must be 6"),
        ({"test": torch.tensor([1])}, "all different"),
        ({"test": torch.tensor([6])}, "below 6"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(capture(), **changes)
