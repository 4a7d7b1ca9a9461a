import importlib.util

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from secateur.metrics.image import lpips, psnr, ssim


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


@pytest.mark.parametrize("metric", [psnr, ssim, lpips])
def test_shapes_that_do_not_fit_are_refused(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=r"\(C, H, W, 3\)"):
        metric(images(2), images(3))
    with pytest.raises(ValueError, match=r"\(C, H, W, 3\)"):
        metric(images(2)[0], images(2)[0])


def test_ssim_refuses_images_below_its_window() -> None:
    with pytest.raises(ValueError, match="11x11"):
        ssim(images(size=10), images(size=10))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_lpips_says_what_to_install() -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        lpips(images(), images())
