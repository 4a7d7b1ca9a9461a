"""Canvases show what their labels say, and are drawn from a seed alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.datasets import Labelled
from tests.contracts import assert_deterministic, assert_same
from vit.tasks.canvases import (
    DIGITS,
    FASHION,
    Layout,
    compose,
    marked_things,
    patch_labels,
    things_everywhere,
)

# Class c is a full square of brightness 100 + 50 c: what lies where can be read off a canvas.
SQUARES = Labelled(
    torch.stack([torch.full((8, 8), 100 + 50 * one, dtype=torch.uint8) for one in range(3)]),
    torch.arange(3),
    ("dim", "grey", "bright"),
)
BARE = Layout(cell=14, fragments=0, noise=0.0)


def test_maps_say_what_is_where() -> None:
    made = things_everywhere(SQUARES, 40, BARE)
    assert made.images.shape == (40, 1, 28, 28) and made.labels.shape == (40, 28, 28)
    assert made.classes == ("background", "dim", "grey", "bright")
    images = made.images[:, 0].long()
    assert (images[made.labels == 0] < 0.1 * 255 + 1).all()
    inner = (images - (50 + 50 * made.labels)).abs()[made.labels > 0]
    assert (inner == 0).float().mean() > 0.6  # the rim of a scaled square is dimmer
    assert (inner >= 0).all() and (images[made.labels > 0] > 25).all()


def test_the_marked_thing_is_inside_the_frame() -> None:
    plain = compose(SQUARES, 40, BARE, 7, mark=False)
    framed = compose(SQUARES, 40, BARE, 7, mark=True)
    assert_same(framed.marked, plain.marked)
    for image, label, things in zip(framed.images[:, 0], framed.marked, plain.maps, strict=True):
        rows, columns = (image == 255).nonzero().unbind(1)
        inside = things[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()]
        assert (inside == label + 1).float().mean() > 0.7 and set(inside.unique().tolist()) <= {0, int(label) + 1}


def test_a_dot_lies_at_the_things_corner() -> None:
    dotted = compose(SQUARES, 20, replace(BARE, marker="dot"), 7, mark=True)
    framed = compose(SQUARES, 20, BARE, 7, mark=True)
    for dot, frame in zip(dotted.images[:, 0], framed.images[:, 0], strict=True):
        places, corner = (dot == 255).nonzero(), (frame == 255).nonzero().min(0).values
        assert len(places) == 9 and torch.equal(places.min(0).values, corner)


@pytest.mark.parametrize("layout", [FASHION, DIGITS, BARE])
def test_as_many_things_as_the_layout_says(layout: Layout) -> None:
    maps = compose(SQUARES, 60, layout, 0, mark=False).maps
    cells = maps.unflatten(2, (2, -1)).unflatten(1, (2, -1)).movedim(2, 3).flatten(3)
    counts = (cells > 0).any(-1).sum((1, 2))
    assert set(counts.tolist()) == {2, 3, 4}
    one_thing_a_cell = [len(set(cell.unique().tolist()) - {0}) <= 1 for cell in cells.flatten(0, 2)]
    assert all(one_thing_a_cell)


def test_clutter_is_background() -> None:
    quiet = compose(SQUARES, 20, replace(FASHION, fragments=0, noise=0.0), 0, mark=False)
    cluttered = compose(SQUARES, 20, FASHION, 0, mark=False)
    behind = cluttered.images[:, 0][cluttered.maps == 0].float()
    assert behind.max() > 100 and behind.std() > 10
    assert quiet.images[:, 0][quiet.maps == 0].float().max() <= 26


def test_the_same_seed_gives_the_same_canvases() -> None:
    def tensors(count: int = 300) -> list[Tensor]:
        made = compose(SQUARES, count, DIGITS, 3, mark=True)
        return [made.images, made.marked, made.maps]

    whole = assert_deterministic(tensors)
    assert_same([one[:20] for one in whole], tensors(20))
    assert not torch.equal(whole[0][:20], compose(SQUARES, 20, DIGITS, 4, mark=True).images)


def test_patches_have_their_most_common_class() -> None:
    maps = torch.tensor([[[0, 1, 2, 2], [1, 1, 0, 2], [0, 0, 3, 3], [1, 1, 1, 1]]])
    assert patch_labels(maps, 2).tolist() == [[[1, 2], [0, 1]]]
    assert_same(patch_labels(maps, 1), maps)
    with pytest.raises(ValueError, match="do not divide maps of 4x4"):
        patch_labels(maps, 3)


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(ValueError, match="0 things"):
        marked_things(SQUARES.subset([]), 2)
    with pytest.raises(ValueError, match="count 0"):
        marked_things(SQUARES, 0)
    for wrong in ({"fewest": 0}, {"most": 5}, {"smallest": 0.0}, {"largest": 1.2}, {"cell": 5}, {"noise": -1.0}):
        with pytest.raises(ValueError, match=r"needed|at least"):
            replace(FASHION, **wrong)
