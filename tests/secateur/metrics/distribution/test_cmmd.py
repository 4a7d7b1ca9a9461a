import math

import pytest
import torch
from torch import Tensor

from secateur.metrics.distribution import cmmd


def normal(count: int, dimensions: int = 16, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + shift


def by_definition(one: Tensor, other: Tensor) -> float:
    one, other = (side.double() / side.double().norm(dim=1, keepdim=True) for side in (one, other))

    def mean(a: Tensor, b: Tensor) -> float:
        return float(torch.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 200).mean())

    return 1000 * (mean(one, one) + mean(other, other) - 2 * mean(one, other))


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_it_is_its_definition_in_chunks_of_any_size(chunk: int) -> None:
    one, other = normal(40), normal(30, seed=1, shift=0.4)
    assert cmmd(one, other, chunk=chunk) == pytest.approx(by_definition(one, other), rel=1e-9)


def test_opposite_vectors() -> None:
    one = torch.tensor([[3.0, 0.0]])
    assert cmmd(one, -one) == pytest.approx(-2000 * math.expm1(-4 / 200), rel=1e-12)


def test_lengths_do_not_matter_and_equal_sets_are_equal() -> None:
    one, other = normal(20), normal(20, seed=1)
    assert cmmd(one * 5, other * 0.1) == pytest.approx(cmmd(one, other), rel=1e-5)
    assert cmmd(one, one) == pytest.approx(0, abs=1e-9)


def test_tiny_differences_survive() -> None:
    one = normal(20)
    moved = one + 1e-5 * normal(20, seed=1)
    assert cmmd(one, moved) == pytest.approx(by_definition(one.double(), moved.double()), abs=1e-9)
    assert cmmd(one, moved) > 0


def test_bad_embeddings_are_counted() -> None:
    broken = normal(9)
    broken[:2] = 0
    with pytest.raises(ValueError, match="2 of 9 embeddings are zero"):
        cmmd(broken, normal(9))
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 9 vectors of the embeddings"):
        cmmd(normal(9), broken)
    with pytest.raises(ValueError, match="sigma and chunk"):
        cmmd(normal(9), normal(9), sigma=0)
