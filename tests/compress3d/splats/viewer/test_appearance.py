import numpy as np
import pytest
import torch

from compress3d.splats.viewer.appearance import RED, Appearance, by_rank, by_value, dress, keep_mask
from compress3d.splats.viewer.arrays import base_colours
from tests.compress3d.splats.viewer.balls import scene


def scores(count: int = 40) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(1))


def test_everything_kept_in_own_colours_is_the_scene_itself() -> None:
    ball = scene(40)
    look = dress(ball, Appearance(), None, None)
    assert look.kept == 40 and look.scale is None
    assert np.array_equal(look.rgbs, base_colours(ball))
    assert np.array_equal(look.opacities[:, 0], ball.peak_opacities().numpy())


@pytest.mark.parametrize("share", [0.005, 0.1, 0.5, 0.975])
def test_what_stays_is_the_exact_share_and_the_best(share: float) -> None:
    keep = keep_mask(scene(40), scores(), share)
    assert int(keep.sum()) == max(1, int(share * 40))
    assert keep.all() or scores()[keep].min() > scores()[~keep].max()


def test_what_goes_is_red_or_hidden_and_the_rest_as_it_was() -> None:
    ball = scene(40)
    keep = keep_mask(ball, scores(), 0.25).numpy()
    red = dress(ball, Appearance(share=0.25), scores(), None)
    assert red.kept == 10 and np.allclose(red.rgbs[~keep], RED)
    assert np.array_equal(red.rgbs[keep], base_colours(ball)[keep])
    hidden = dress(ball, Appearance(share=0.25, gone="hidden"), scores(), None)
    assert (hidden.opacities[~keep] == 0).all() and (hidden.opacities[keep] > 0).all()
    assert np.array_equal(hidden.rgbs, base_colours(ball))


def test_ranks_are_brighter_the_higher_and_permute_with_the_gaussians() -> None:
    values = torch.tensor([3.0, -torch.inf, 7.0, 3.0, 100.0])
    colours = by_rank(values)
    light = colours.sum(axis=1)
    assert light[1] < light[0] == light[3] < light[2] < light[4]
    order = torch.tensor([4, 2, 0, 1, 3])
    assert np.array_equal(by_rank(values[order]), colours[order.numpy()])


def test_values_that_span_orders_of_magnitude_are_spread_by_their_logarithm() -> None:
    wide = torch.logspace(-8, 0, 101)
    colours, (low, high, logarithmic) = by_value(wide)
    assert logarithmic and 0 < low < 1e-7 and 0.5 < high < 1
    assert np.abs(colours[50] - by_value(torch.linspace(0, 1, 101))[0][50]).max() < 0.05
    zeros = torch.cat([torch.zeros(200), wide])
    assert np.array_equal(by_value(zeros)[0][0], colours[0])


def test_values_all_equal_or_infinite_have_colours_too() -> None:
    for values in (torch.full((5,), 2.0), torch.full((5,), -torch.inf), torch.zeros(5)):
        colours, (low, high, logarithmic) = by_value(values)
        assert not logarithmic and np.isfinite(colours).all() and low == high
    assert by_value(torch.tensor([1.0, 2.0, -torch.inf]))[0][2].sum() <= by_value(torch.tensor([1.0, 2.0]))[0][0].sum()


def test_scores_and_errors_that_are_needed_must_be_there() -> None:
    with pytest.raises(ValueError, match="needs scores"):
        dress(scene(4), Appearance(share=0.5), None, None)
    with pytest.raises(ValueError, match="needs errors"):
        dress(scene(4), Appearance("error against the twin"), None, None)
