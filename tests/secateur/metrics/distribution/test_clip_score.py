import pytest
import torch

from secateur.metrics.distribution import clip_score


def test_it_is_a_hundred_times_the_cosine_and_never_negative() -> None:
    images = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    captions = torch.tensor([[5.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
    expected = torch.tensor([100.0, 100 / 2**0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(clip_score(images, captions), expected)


def test_each_image_needs_its_caption() -> None:
    with pytest.raises(ValueError, match="3 images and 2 captions"):
        clip_score(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="1 of 3 vectors of the caption embeddings"):
        clip_score(torch.ones(3, 4), torch.tensor([[1.0] * 4, [torch.inf] * 4, [1.0] * 4]))
