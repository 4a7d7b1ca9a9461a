"""The photometric loss, against torch's gradients of the same formula and against torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from compress3d.photometric import _torch_loss, photometric_loss


def images(height: int = 37, width: int = 29, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    target = torch.rand(height, width, 3, generator=random)
    return (target + 0.2 * torch.randn(height, width, 3, generator=random)), target


@pytest.mark.parametrize("dssim", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("size", [(37, 29), (1, 1), (3, 40), (64, 16)])
def test_value_and_gradient_are_those_of_torch_in_double(dssim: float, size: tuple[int, int]) -> None:
    image, target = images(*size)
    single, double = image.clone().requires_grad_(), image.double().requires_grad_()
    ours, theirs = photometric_loss(single, target, dssim), _torch_loss(double, target.double(), dssim)
    (3.0 * ours).backward()
    (3.0 * theirs).backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert single.grad is not None and double.grad is not None
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-3, atol=2e-4 * float(double.grad.abs().max()))


def test_ssim_is_torchmetrics_away_from_the_edges() -> None:
    image, target = images(64, 64)
    # Flat at the edges, so that how they are padded is all that differs, in both images alike.
    image[:12], image[-12:], image[:, :12], image[:, -12:] = 0, 0, 0, 0
    target[:12], target[-12:], target[:, :12], target[:, -12:] = 0, 0, 0, 0
    batch = [one.permute(2, 0, 1)[None].clamp(0, 1) for one in (image, target)]
    theirs = structural_similarity_index_measure(*batch, data_range=1.0)
    ours = 1 - photometric_loss(image.clamp(0, 1), target, dssim=1.0)
    assert float(ours) == pytest.approx(float(theirs), abs=2e-4)


def test_equal_images_lose_nothing() -> None:
    _, target = images()
    image = target.clone().requires_grad_()
    loss = photometric_loss(image, target)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert image.grad is not None and float(image.grad.abs().max()) < 1e-6


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        photometric_loss(torch.zeros(4, 4, 3), torch.zeros(4, 5, 3))
