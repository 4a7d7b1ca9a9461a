"""The hash grid through tiny-cuda-nn, whose arithmetic a stand-in has, beside the CPU's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress3d.nerf import hashgrid, libraries, tiny_cuda
from compress3d.nerf.hashgrid import encode, encode_reference
from compress3d.nerf.levels import Level, grid_levels
from compress3d.nerf.tiny_cuda import encode_tiny_cuda
from tests.compress3d.nerf.elsewhere import elsewhere
from tests.compress3d.nerf.fake_libraries import Encoding, only, tinycudann
from tests.compress3d.nerf.test_hashgrid import LEVELS, some_positions, some_slots, some_table

FINE = (*grid_levels(4, 14, 16, 700), Level(2**15 - 0.3, 1 << 18, hashed=True), Level(6.0, 512, hashed=False))


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with only(tinycudann=tinycudann()):
        yield


def results(run: Any, features: int, levels: tuple[Level, ...], slots: Tensor | None = None) -> list[Tensor]:
    """Features, and gradients to the table and the positions within the cube."""
    table = some_table(levels, features, torch.float32)
    table = (table if slots is None else table[: int(slots.max()) + 1]).requires_grad_()
    positions = some_positions(dtype=torch.float32)[:-3].requires_grad_()
    found = run(positions, table, levels, slots)
    slopes = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    return [found, *torch.autograd.grad(found, (table, positions), slopes)]


@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("cut", [False, True])
def test_features_and_gradients_are_the_kernels(features: int, cut: bool) -> None:
    slots = some_slots()[0] if cut else None
    ours, theirs = (results(run, features, LEVELS, slots) for run in (encode, encode_tiny_cuda))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(one.detach().abs().max()))


@pytest.mark.parametrize("old", [False, True])
def test_fine_and_hashed_levels_are_the_reference_to_the_last_bit(old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoding, "old", old)
    table, positions = some_table(FINE, 2, torch.float32), some_positions(dtype=torch.float32)
    ours, theirs = encode_reference(positions, table, FINE), encode_tiny_cuda(positions, table, FINE)
    hashed = torch.tensor([level.hashed for level in FINE]).repeat_interleave(2)
    assert 0 < int(hashed.sum()) < len(hashed)
    torch.testing.assert_close(ours[:, hashed], theirs[:, hashed], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[:, ~hashed], theirs[:, ~hashed], rtol=1e-5, atol=3e-5)


def test_coordinates_outside_count_as_on_the_side() -> None:
    positions = torch.tensor([[-0.3, 0.5, 2.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    table = some_table(features=4, dtype=torch.float32)
    torch.testing.assert_close(
        encode_tiny_cuda(positions, table, LEVELS), encode(positions, table, LEVELS), rtol=1e-5, atol=1e-5
    )


def test_grids_are_made_once_and_hold_no_table_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Encoding] = []

    class Counted(Encoding):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    library = ModuleType("tinycudann")
    library.__dict__["Encoding"] = Counted
    with only(tinycudann=library):
        for _ in range(3):
            results(encode_tiny_cuda, 2, LEVELS)
    dense = sum(not level.hashed for level in LEVELS)
    assert len(made) == dense + 1 and dense < len(LEVELS) - 1
    assert all(not one.params.numel() for one in made)


def test_what_the_library_serves() -> None:
    here = torch.zeros(3, 3)

    def table(**changed: object) -> Any:
        return SimpleNamespace(**{"is_cuda": True, "dtype": torch.float32, "shape": (9, 4), **changed})

    assert tiny_cuda.serves(here, table(), LEVELS)
    assert not tiny_cuda.serves(here, table(is_cuda=False), LEVELS)
    assert not tiny_cuda.serves(here, table(dtype=torch.float64), LEVELS)
    assert not tiny_cuda.serves(here, table(shape=(9, 3)), LEVELS)
    assert not tiny_cuda.serves(here[:0], table(), LEVELS)
    assert not tiny_cuda.serves(here, table(), (Level(2.0**16, 1 << 10, hashed=True),))
    with only():
        assert not tiny_cuda.serves(here, table(), LEVELS)


@pytest.mark.parametrize("served", [False, True])
def test_a_grid_elsewhere_goes_through_the_library_where_that_serves(
    served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashgrid, "serves", lambda *given: served)
    table, positions = some_table(dtype=torch.float32), some_positions(20, torch.float32)
    wanted = encode(positions, table, LEVELS)
    with elsewhere() as device:
        found = encode(positions.to(device), table.to(device), LEVELS)
        assert found.device == device
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-5)
    assert bool(tiny_cuda._grid.cache_info().misses) == served


def test_a_library_that_does_not_load_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def importing(name: str) -> ModuleType:
        raise OSError("built for another device")

    monkeypatch.setattr(libraries, "import_module", importing)
    libraries.library.cache_clear()
    with pytest.warns(UserWarning, match="tinycudann is installed but does not load.*built for another device"):
        assert libraries.library("tinycudann") is None
    assert libraries.library("tinycudann") is None
