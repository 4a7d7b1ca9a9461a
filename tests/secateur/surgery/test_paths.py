"""No block goes without which the output would no longer see the input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation import Budget
from secateur.surgery import Block, Network
from secateur.surgery.paths import Paths, allocate_connected
from secateur.units import UnitGroup
from tests.contracts import assert_deterministic, assert_exact_budget, assert_mask_equals_cut


class Cell(nn.Module):
    """Two operators side by side, then one that all passes through, then a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.neck, self.branch = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.neck((self.left(x) + self.right(x)).relu())
        return x + self.branch(x)


NAMES = ("left", "right", "neck", "branch")


def cell(**leaves: str) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Cell().eval()
    blocks = {name: (Block(name, leaves.get(name, "nothing")),) for name in NAMES}  # type: ignore[arg-type]
    groups = [UnitGroup(name, 1, (), min_keep=0) for name in NAMES]
    return Network(module, groups, torch.ones(2, 4), blocks=blocks)


def scores(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor([values.get(name, 1.0)]) for name in NAMES}


def kept(network: Network, limit: int, **values: float) -> set[str]:
    budget = Budget(limit=limit)
    keep = assert_deterministic(partial(allocate_connected, network, scores(**values), budget))
    return {name for name, mask in keep.items() if bool(mask.all())}


def test_a_cut_vertex_is_never_erased() -> None:
    paths = Paths(cell())
    assert paths.connected(["left"]) and paths.connected(["right", "branch"])
    assert not paths.connected(["neck"]) and not paths.connected(["left", "right"])
    assert kept(cell(), 3, neck=0.1, left=0.2) == {"right", "neck", "branch"}
    assert kept(cell(), 2, neck=0.1, left=0.2, right=0.3, branch=0.9) == {"right", "neck"}


def test_a_block_that_leaves_its_input_may_go() -> None:
    assert kept(cell(neck="input"), 3, neck=0.1) == {"left", "right", "branch"}


def test_budgets_are_exact_and_the_whole_is_kept_whole() -> None:
    network = cell()
    for limit in (2, 3, 4):
        keep = allocate_connected(network, scores(left=0.5), Budget(limit=limit))
        assert_exact_budget(keep, network.groups(), Budget(limit=limit))
        assert_mask_equals_cut(network, keep, lambda of: of(torch.ones(2, 4)).detach())
    assert kept(network, 4) == set(NAMES)


def test_what_would_break_every_path_is_refused() -> None:
    with pytest.raises(ValueError, match="a path from input to output, which cost 2"):
        allocate_connected(cell(), scores(), Budget(limit=1))
    numbers = cell()
    numbers.example_inputs = torch.ones(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="inputs of real numbers"):
        Paths(numbers)
