import pytest
import torch
from torch import Tensor

from secateur.metrics.distribution import DistributionJudge, Moments, frechet_distance, kernel_distance


class Pixels:
    """Images as their own vectors."""

    name, weights_sha256, dimensions = "pixels", "0" * 64, 4

    def __call__(self, images: Tensor, /) -> Tensor:
        return images.flatten(1)


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_a_judge_says_what_it_compared() -> None:
    judge = DistributionJudge.of(Pixels(), images(30, 0), images(25, 1).split(10))
    vectors = images(20, 2).flatten(1) ** 2
    said = judge.distances(vectors)
    assert said.name == "FD-pixels"
    assert said.frechet == frechet_distance(Moments.of(vectors), Moments.of(images(30, 0).flatten(1)))
    assert said.floor is not None
    assert said.floor < said.frechet
    assert said.kid == kernel_distance(vectors, images(30, 0).flatten(1), subset_size=10)
    assert (said.samples, said.reference_samples, said.dimensions, said.singular) == (20, 30, 4, False)
    assert said == judge.distances(vectors)


def test_no_floor_without_enough_real_images_apart() -> None:
    vectors = images(20, 2).flatten(1)
    for held_out in (None, images(19, 1)):
        assert DistributionJudge.of(Pixels(), images(30, 0), held_out).distances(vectors).floor is None


def test_few_samples_are_said_to_be_singular_and_too_few_are_refused() -> None:
    judge = DistributionJudge.of(Pixels(), images(30, 0))
    assert judge.distances(images(4, 2).flatten(1)).singular
    with pytest.raises(ValueError, match="at least 4 images of each set, got 3"):
        judge.distances(images(3, 2).flatten(1))
    with pytest.raises(ValueError, match="1 of 5 vectors"):
        judge.distances(torch.tensor([[0.0] * 4] * 4 + [[torch.nan] * 4]))
