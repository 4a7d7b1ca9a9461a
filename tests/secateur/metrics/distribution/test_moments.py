from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.metrics.distribution import Moments, gather_moments


def vectors(count: int, dimensions: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.rand(dimensions, dimensions, generator=generator)
    return torch.randn(count, dimensions, generator=generator) @ mixing + 3


def assert_equal(one: Moments, other: Moments) -> None:
    assert one.count == other.count
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(one.covariance(), other.covariance(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_moments_do_not_depend_on_how_vectors_come(batch_size: int) -> None:
    held = vectors(100)
    streamed = Moments.over(held.split(batch_size))
    assert_equal(streamed, Moments.of(held))
    torch.testing.assert_close(streamed.mean, held.double().mean(dim=0))
    torch.testing.assert_close(streamed.covariance(), held.double().T.cov())


def test_moments_of_parts_add_in_any_grouping() -> None:
    parts = [Moments.of(part) for part in vectors(60).split([10, 1, 30, 19])]
    assert_equal((parts[0] + parts[1]) + (parts[2] + parts[3]), parts[3] + (parts[2] + (parts[1] + parts[0])))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.floats(-1e6, 1e6), st.integers(0, 1000))
def test_any_split_gives_the_same_moments(sizes: list[int], shift: float, seed: int) -> None:
    held = vectors(sum(sizes), 3, seed).double() + shift
    whole, merged = Moments.of(held), Moments.over(held.split(sizes))
    assert whole.count == merged.count
    scale = max(1.0, abs(shift))
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=1e-13 * scale)
    torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-9, atol=1e-12 * scale**2 * len(held))
    assert torch.equal(merged.scatter, Moments.over(held.split(sizes)).scatter)


def test_a_large_mean_does_not_drown_the_covariance() -> None:
    held = vectors(200).double()
    shifted = Moments.over((held + 1e7).split(13))
    torch.testing.assert_close(shifted.covariance(), held.T.cov(), rtol=1e-6, atol=0)


def test_too_few_vectors_are_said_to_be() -> None:
    assert Moments.of(vectors(5)).singular
    assert not Moments.of(vectors(6)).singular
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        Moments.of(vectors(1)).covariance()
    with pytest.raises(ValueError, match="at least one batch"):
        Moments.over([])


def test_vectors_that_are_not_finite_are_counted() -> None:
    held = vectors(10)
    held[3, 1], held[3, 2], held[7, 0] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(ValueError, match="2 of 10 vectors"):
        Moments.of(held)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(2, 2).long()])
def test_what_is_no_set_of_vectors_is_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        Moments.of(bad)


def test_vectors_of_two_networks_do_not_add() -> None:
    with pytest.raises(ValueError, match="5 and of 4 dimensions"):
        Moments.of(vectors(5, 5)) + Moments.of(vectors(5, 4))


def test_without_processes_the_own_moments_are_all() -> None:
    own = Moments.of(vectors(9))
    assert gather_moments(own) is own


def test_a_single_process_gathers_its_own(tmp_path: Path) -> None:
    own = Moments.of(vectors(9))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert_equal(gather_moments(own), own)
    finally:
        torch.distributed.destroy_process_group()


def _gather(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        gathered = gather_moments(Moments.of(vectors(30)[rank * 12 : 12 + rank * 18]))
        torch.save((gathered.count, gathered.mean, gathered.scatter), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_gather_the_same_moments(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_gather, (str(tmp_path),), nprocs=2)
    one, other = (Moments(*torch.load(tmp_path / f"{rank}.pt", weights_only=True)) for rank in range(2))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.scatter, other.scatter)
    assert_equal(one, Moments.of(vectors(30)))
