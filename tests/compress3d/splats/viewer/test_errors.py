import pytest
import torch

from compress3d.splats.viewer.errors import UNITS, attribute_errors, pair
from tests.compress3d.splats.viewer.balls import scene


def test_a_shuffled_twin_is_found_by_nearest_neighbours() -> None:
    ball, order = scene(60), torch.randperm(60, generator=torch.Generator().manual_seed(3))
    twin = ball.select(order)
    index = pair(ball, twin, "nearest")
    assert torch.equal(order[index], torch.arange(60))
    for attribute in UNITS:
        assert float(attribute_errors(ball, twin, index, attribute).max()) < 1e-5


def test_errors_are_those_of_the_attribute_that_changed() -> None:
    ball = scene(10)
    twin = ball.with_tensors(
        means=ball.means + torch.tensor([0.0, 0.3, 0.4]), sh0=ball.sh0.clamp(-1, 1) * 0, scales=ball.scales + 0.5
    )
    index = pair(ball, twin, "same index")
    assert torch.allclose(attribute_errors(ball, twin, index, "position"), torch.full((10,), 0.5))
    assert torch.allclose(attribute_errors(ball, twin, index, "opacity"), torch.zeros(10))
    assert torch.allclose(attribute_errors(ball, twin, index, "shape"), torch.full((10,), torch.e - 1), rtol=1e-3)
    expected = 255 * ((0.5 + 0.28209479 * ball.sh0[:, 0]).clamp(0, 1) - 0.5).abs().mean(dim=1)
    assert torch.allclose(attribute_errors(ball, twin, index, "colour"), expected, atol=1e-3)


def test_signs_of_quaternions_do_not_count_as_shape() -> None:
    ball = scene(10)
    twin = ball.with_tensors(quats=-2 * ball.quats)
    assert float(attribute_errors(ball, twin, torch.arange(10), "shape").max()) < 1e-5


def test_the_same_index_needs_equal_counts() -> None:
    with pytest.raises(ValueError, match="10 and 9 Gaussians"):
        pair(scene(10), scene(9), "same index")
