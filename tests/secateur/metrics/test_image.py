import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from secateur.metrics.image import lpips, psnr, ssim
from secateur.metrics.perceptual import PerceptualDistance
from tests.secateur.metrics.perceptual import random_distance

Metric = Callable[[Tensor, Tensor], Tensor]


def distance() -> PerceptualDistance:
    return random_distance("alex")


def images(count: int = 2, size: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error() -> None:
    reference = torch.full((3, 8, 8, 3), 0.5)
    errors = torch.tensor([0.1, 0.01, 0.001]).view(3, 1, 1, 1)
    torch.testing.assert_close(psnr(reference + errors, reference), torch.tensor([20.0, 40.0, 60.0]), atol=1e-3, rtol=0)


def test_psnr_of_equal_images_is_infinite() -> None:
    assert torch.isinf(psnr(images(), images())).all()


def test_psnr_clamps_before_comparing() -> None:
    reference = torch.ones(1, 8, 8, 3)
    assert torch.isinf(psnr(reference * 7.0, reference)).all()


def test_ssim_is_one_for_equal_images_and_less_otherwise() -> None:
    torch.testing.assert_close(ssim(images(), images()), torch.ones(2))
    assert (ssim(images(seed=1), images()) < 0.2).all()


def test_ssim_agrees_with_its_definition_on_flat_images() -> None:
    one, other = 0.25, 0.75
    expected = (2 * one * other + 1e-4) / (one**2 + other**2 + 1e-4)
    value = ssim(torch.full((1, 16, 16, 3), one), torch.full((1, 16, 16, 3), other))
    torch.testing.assert_close(value, torch.tensor([expected]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(2, 24, 24, 3), (1, 11, 40, 3)])
def test_ssim_agrees_with_torchmetrics(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    reference = torch.rand(shape, generator=generator)
    made = reference + 0.2 * torch.rand(shape, generator=generator) - 0.1
    for index in range(shape[0]):
        pair = [batch[index].clamp(0, 1).permute(2, 0, 1)[None] for batch in (made, reference)]
        expected = structural_similarity_index_measure(*pair, sigma=1.5, data_range=1.0)
        torch.testing.assert_close(ssim(made, reference)[index], expected, atol=1e-5, rtol=0)


def test_metrics_are_per_image() -> None:
    made, reference = images(3, seed=1), images(3)
    for metric in (psnr, ssim):
        whole = metric(made, reference)
        assert whole.shape == (3,)
        torch.testing.assert_close(whole[1:2], metric(made[1:2], reference[1:2]))


def test_scikit_image_agrees_on_psnr() -> None:
    made, reference = images(3, seed=1), images(3)
    expected = [
        peak_signal_noise_ratio(real.numpy(), one.numpy(), data_range=1.0)
        for one, real in zip(made, reference, strict=True)
    ]
    torch.testing.assert_close(psnr(made, reference), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("size", [(33, 40), (64, 25)])
def test_scikit_image_agrees_on_ssim_but_for_the_edges(size: tuple[int, int]) -> None:
    # It mirrors images at their edges with the edge pixel doubled; flat edges are the same either way.
    rng = np.random.default_rng(0)
    reference, made = (np.full((*size, 3), level, np.float64) for level in (0.5, 0.45))
    for image in (reference, made):
        image[11:-11, 11:-11] = rng.random((size[0] - 22, size[1] - 22, 3))
    _, whole = structural_similarity(
        made,
        reference,
        data_range=1.0,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    pair = [torch.from_numpy(image)[None] for image in (made, reference)]
    assert float(ssim(*pair)) == pytest.approx(whole.mean(), abs=1e-7)
    # The variance of flat float32 images is lost in rounding, next to a constant of 0.0009.
    assert float(ssim(*(image.float() for image in pair))) == pytest.approx(whole.mean(), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 2**20),
    st.sampled_from([0.0, 1e-4, 0.1, 1.0]),
)
def test_what_holds_for_any_pair(height: int, width: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, noise = (torch.rand(1, height, width, 3, generator=generator) for _ in range(2))
    other = (one + scale * (noise - 0.5)).clamp(0, 1)
    there, back = float(psnr(one, other)), float(psnr(other, one))
    assert there == back and there >= 0
    assert math.isinf(there) == torch.equal(one, other)
    if min(height, width) >= 11:
        similar = float(ssim(one, other))
        assert similar == pytest.approx(float(ssim(other, one)), abs=1e-6)
        assert -1 <= similar <= 1 + 1e-6
        turned = float(ssim(one.transpose(1, 2), other.transpose(1, 2)))
        assert similar == pytest.approx(turned, abs=1e-5)


def test_a_single_pixel_has_a_psnr_and_no_ssim() -> None:
    one, other = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3), torch.tensor([0.3, 0.5, 1.0]).view(1, 1, 1, 3)
    assert float(psnr(one, other)) == pytest.approx(-10 * math.log10(0.09 / 3), abs=1e-4)
    with pytest.raises(ValueError, match="11x11"):
        ssim(one, other)


def test_black_against_white_is_as_far_as_images_can_be() -> None:
    black, white = torch.zeros(1, 11, 11, 3), torch.ones(1, 11, 11, 3)
    assert float(psnr(black, white)) == 0
    assert float(ssim(black, white)) == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-4)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_images_that_are_not_finite_are_counted(metric: Metric, value: float) -> None:
    broken = images(5)
    broken[1, 3, 4, 0] = broken[4, 0, 0, 2] = value
    with pytest.raises(ValueError, match="2 of 5 images have pixels that are not finite"):
        metric(broken, images(5))
    with pytest.raises(ValueError, match="2 of 5 references have pixels that are not finite"):
        metric(images(5), broken)


@pytest.mark.parametrize("metric", [psnr, ssim, lambda one, other: lpips(one, other, distance())])
def test_shapes_that_do_not_fit_are_refused(metric: Metric) -> None:
    with pytest.raises(ValueError, match=r"\(C, H, W, 3\)"):
        metric(images(2), images(3))
    with pytest.raises(ValueError, match=r"\(C, H, W, 3\)"):
        metric(images(2)[0], images(2)[0])


def test_ssim_refuses_images_below_its_window() -> None:
    with pytest.raises(ValueError, match="11x11"):
        ssim(images(size=10), images(size=10))


def test_lpips_is_a_number_for_each_image() -> None:
    made, reference = images(2, 32, seed=1), images(2, 32)
    values = lpips(made, reference, distance())
    torch.testing.assert_close(values, distance()(made.permute(0, 3, 1, 2), reference.permute(0, 3, 1, 2)))
    assert values.shape == (2,) and (values > 0).all()
    assert torch.equal(lpips(made, made, distance()), torch.zeros(2))
