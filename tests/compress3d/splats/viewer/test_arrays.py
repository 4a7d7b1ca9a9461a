import numpy as np
import torch
from scipy.spatial.transform import Rotation

from compress3d.splats.viewer.arrays import base_colours, covariances, most_visible, splat_arrays
from tests.compress3d.splats.viewer.balls import scene


def test_covariances_are_those_of_rotated_axes() -> None:
    ball = scene(50)
    rotations = Rotation.from_quat(ball.quats.numpy()[:, [1, 2, 3, 0]]).as_matrix()
    expected = rotations @ (np.exp(2 * ball.scales.numpy())[:, :, None] * rotations.transpose(0, 2, 1))
    np.testing.assert_allclose(covariances(ball).numpy(), expected, rtol=1e-4, atol=1e-8)


def test_arrays_are_the_scene_in_other_units() -> None:
    ball = scene(50)
    arrays = splat_arrays(ball)
    np.testing.assert_allclose(arrays.centers * arrays.unit, ball.means.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(arrays.covariances * arrays.unit**2, covariances(ball).numpy(), rtol=1e-5)
    assert arrays.opacities.shape == (50, 1) and arrays.rgbs.min() >= 0 and arrays.rgbs.max() <= 1


def test_half_precision_holds_tiny_scenes_and_huge_floaters() -> None:
    ball = scene(50)
    tiny = ball.with_tensors(means=1e-4 * ball.means, scales=ball.scales - 9.2)
    np.testing.assert_allclose(splat_arrays(tiny).covariances, splat_arrays(ball).covariances, rtol=1e-2)
    scales = ball.scales.clone()
    scales[7] = 12.0
    halves = splat_arrays(ball.with_tensors(scales=scales)).covariances.astype(np.float16)
    assert np.isfinite(halves).all() and (halves[:, [0, 1, 2], [0, 1, 2]] > 0).all()


def test_colours_of_degree_0_stay_in_the_gamut() -> None:
    ball = scene(3).with_tensors(sh0=torch.tensor([[[0.0, 10.0, -10.0]]]).expand(3, 1, 3))
    np.testing.assert_allclose(base_colours(ball), [[0.5, 1, 0]] * 3)


def test_a_cap_keeps_what_covers_most() -> None:
    ball = scene(20).with_tensors(scales=torch.arange(20.0)[:, None].expand(20, 3) / 10 - 3, opacities=torch.zeros(20))
    assert most_visible(ball, 5).tolist() == [15, 16, 17, 18, 19]
    assert most_visible(ball, 50).tolist() == list(range(20))
