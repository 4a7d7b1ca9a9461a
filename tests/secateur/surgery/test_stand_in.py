"""What stands in the place of blocks that were cut out, and of layers that keep their width without some outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.surgery import Block, Network
from secateur.surgery.cost import count_macs, count_params
from secateur.surgery.manifest import load, save
from secateur.surgery.scatter import ScatterLinear
from secateur.surgery.stand_in import stand_in
from secateur.units import Member, UnitGroup
from tests.contracts import assert_mask_equals_cut, assert_mask_of_ones_changes_nothing


class Residual(nn.Module):
    """A branch with a shortcut of its own, then a convolution with a stride, then a linear layer over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, padding=1)
        self.shortcut = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x).relu())


class Pair(nn.Module):
    """Two streams in, two out, in the other order."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 4)
        self.shared = nn.Linear(4, 4)

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return image + self.shared(text).mean(), text + self.out(image).mean()


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.pair = Pair()
        self.modulation = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        # On transposed tokens a linear layer rounds otherwise for a parameter than for a masked one.
        tokens = self.down(self.block(x)).flatten(2).mT.contiguous()
        first, second = self.pair(tokens, image=tokens + 1)
        return self.modulation(first - second) * tokens + self.pair.shared(tokens)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return Whole().eval()


def run(target: Any) -> Tensor:
    with torch.no_grad():
        return target(example())


def example() -> Tensor:
    return torch.randn(2, 3, 8, 7, generator=torch.Generator().manual_seed(1))


def mapped(module: nn.Module) -> Network:
    rows = ("block.first.weight", "block.first.bias")
    inner = UnitGroup("inner", 6, (*(Member(name) for name in rows), Member("block.second.weight", 1)), min_keep=0)
    outputs = UnitGroup("outputs", 4, (Member("modulation.weight"), Member("modulation.bias")), min_keep=0)
    blocks = {
        "block": Block("block", "input", part="shortcut"),
        "down": Block("down", "pointwise"),
        "pair": Block("pair", "input", 2, ("image", "text"), held=("shared",)),
    }
    return Network(
        module,
        [inner, outputs, *(UnitGroup(name, 1, (), min_keep=0) for name in blocks)],
        example(),
        blocks={name: (block,) for name, block in blocks.items()},
        emptied={"inner": Block("block", "input", part="shortcut", biases=("second.bias",))},
        scattered=("outputs",),
    )


@pytest.mark.parametrize(
    "lost",
    [
        {"block": [0]},
        {"down": [0]},
        {"pair": [0]},
        {"inner": [0, 3]},
        {"inner": [0, 1, 2, 3, 4, 5]},
        {"outputs": [1, 2]},
        {"outputs": [0, 1, 2, 3], "inner": [0, 1, 2, 3, 4, 5], "down": [0], "pair": [0]},
        {"inner": [0, 1, 2, 3, 4, 5], "block": [0]},
    ],
)
def test_mask_equals_cut_and_the_cut_is_saved(module: nn.Module, lost: dict[str, list[int]], tmp_path: Path) -> None:
    network = mapped(module)
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in network.groups()}
    for name, units in lost.items():
        keep[name][units] = False
    assert_mask_of_ones_changes_nothing(network, run)
    assert_mask_equals_cut(network, keep, run)
    smaller = network.cut(keep)
    save(smaller, tmp_path)
    assert torch.equal(run(load(tmp_path, Whole)), run(smaller))
    only = [name for name in lost if len(lost) == 1 and name != "inner"]
    for name in only:
        group = next(group for group in network.groups() if group.name == name)
        saved = {cost: float(group.cost[cost][lost[name]].sum()) for cost in ("params", "macs")}
        assert count_params(module) - count_params(smaller.module) == saved["params"]
        if name != "pair":  # It uses what it holds for others itself too.
            assert count_macs(module, example()) - count_macs(smaller.module, example()) == saved["macs"]


def test_a_cut_is_cut_again(module: nn.Module) -> None:
    network = mapped(module)
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in network.groups()}
    once = network.cut(keep | {"outputs": torch.tensor([True, False, True, True]), "inner": torch.zeros(6).bool()})
    again = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in once.groups()}
    again["outputs"][1] = True
    assert_mask_equals_cut(once, again, run)
    twice = once.cut(again)
    assert twice.module.modulation.rows.tolist() == [2]  # type: ignore[union-attr, operator]
    assert twice.cuts.rows["modulation.weight", 0].rows.tolist() == [2]
    assert [kind for kind, _ in twice.cuts.blocks.values()] == ["Residual", "Conv2d", "Pair"]


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 2, 0), (5, 3, 1), (4, 2, 1)])
def test_a_pointwise_convolution_is_right_where_the_picture_is_constant(size: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(3, 5, size, stride, padding)
    for side in (9, 10, 11):
        flat = torch.randn(2, 3, 1, 1).expand(2, 3, side, side)
        expected, found = dense(flat), stand_in(dense, Block("", "pointwise"))(flat)
        assert found.shape == expected.shape
        inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        torch.testing.assert_close(found[inside], expected[inside])


def test_scattered_outputs_are_zero() -> None:
    layer = nn.Linear(3, 5)
    kept = torch.tensor([0, 3])
    scattered = ScatterLinear(
        nn.Parameter(layer.weight[kept].detach()), nn.Parameter(layer.bias[kept].detach()), kept, 5
    )
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(scattered(x)[..., kept], layer(x)[..., kept])
    assert not bool(scattered(x)[..., [1, 2, 4]].any())


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block("block", "input", part="middle"), "no submodule 'middle'"),
        (Block("block", biases=("second.scale",)), "no parameter 'second.scale'"),
        (Block("pair", "input", 2, ("image", "sound")), "no argument 'sound'"),
        (Block("modulation", "pointwise"), "no plain 2d convolution"),
    ],
)
def test_blocks_that_leave_what_is_not_there(module: nn.Module, block: Block, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stand_in(module.get_submodule(block.module), block)


def test_emptied_and_scattered_name_groups(module: nn.Module) -> None:
    group = UnitGroup("inner", 6, (Member("block.second.weight", 1),))
    with pytest.raises(ValueError, match="no group 'outer'"):
        Network(module, (group,), emptied={"outer": Block("block")})
    with pytest.raises(ValueError, match="no module 'middle'"):
        Network(module, (group,), emptied={"inner": Block("middle")})
    with pytest.raises(ValueError, match="no group 'outer'"):
        Network(module, (group,), factors={"outer": ("block.second.weight",)})


class Product(nn.Module):
    """Features of two layers that meet in a product, as queries and keys do."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x) * self.right(x)).sum(dim=-1)


def test_factors_are_masked_where_they_are_written() -> None:
    names = [f"{layer}.{tensor}" for layer in ("left", "right") for tensor in ("weight", "bias")]
    group = UnitGroup("features", 6, tuple(Member(name) for name in names))
    module = Product()
    with pytest.raises(ValueError, match="reads its units"):
        Network(module, (group,))
    network = Network(module, (group,), factors={"features": ("left.weight", "left.bias")})
    keep = {"features": torch.arange(6) % 2 == 0}
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert_mask_of_ones_changes_nothing(network, lambda each: each(x).detach())
    assert_mask_equals_cut(network, keep, lambda each: each(x).detach())
    assert_mask_equals_cut(network.cut(keep), {"features": torch.arange(3) > 0}, lambda each: each(x).detach())


class Rows(nn.Module):
    """Channels between two layers over a picture whose features lie in its last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.up(x)))


def test_biases_are_added_where_features_lie(tmp_path: Path) -> None:
    module = nn.Sequential(Rows())
    group = UnitGroup("inner", 6, (Member("0.up.weight"), Member("0.up.bias"), Member("0.down.weight", 1)), min_keep=0)
    block = Block("0", biases=("down.bias",), features_last=True)
    network = Network(module, (group,), emptied={"inner": block})
    x = torch.randn(2, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    keep = {"inner": torch.zeros(6, dtype=torch.bool)}
    assert_mask_equals_cut(network, keep, lambda each: each(x).detach())
    save(network.cut(keep), tmp_path)
    assert torch.equal(load(tmp_path, lambda: nn.Sequential(Rows()))(x), network.cut(keep)(x))
