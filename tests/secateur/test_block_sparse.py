"""Products over kept blocks against dense ones, forward and backward; files of them; channels that go whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.block_compaction import compact, write_block_zeros
from secateur.block_sparse import BlockSparseLinear, block_product, with_blocks
from secateur.block_sparse_files import load_block_sparse, save_block_sparse
from secateur.blocks import from_blocked_csr
from secateur.surgery import Network
from secateur.surgery.attention import feed_forward_group
from secateur.surgery.cost import count_macs
from secateur.training.seeding import seeded
from tests.contracts import assert_same
from tests.secateur.toys import generator

BLOCKS = [(16, 16), (32, 32), (64, 32), (48, 16), (8, 12)]
"""The last has no kernel."""


def linear(inputs: int, outputs: int, seed: int = 0, bias: bool = True) -> nn.Linear:
    with seeded(seed, torch.device("cpu")):
        return nn.Linear(inputs, outputs, bias=bias)


def mask(high: int, wide: int, share: float = 0.4, seed: int = 0) -> Tensor:
    """Some blocks; the first row of blocks is empty."""
    keep = torch.rand(high, wide, generator=generator(seed)) < share
    keep[0], keep[-1, -1] = False, True
    return keep


def pair(rows: int, columns: int, bias: bool = True) -> tuple[BlockSparseLinear, nn.Linear]:
    """A block-sparse layer, and the dense one with zeros."""
    sparse = BlockSparseLinear.of(linear(5 * columns, 3 * rows, bias=bias), mask(3, 5))
    return sparse, sparse.to_linear()


@pytest.mark.parametrize(("rows", "columns"), BLOCKS)
@pytest.mark.parametrize("tokens", [1, 5, 8, 13, 205])
def test_the_product_is_the_masked_dense_one(rows: int, columns: int, tokens: int) -> None:
    sparse, dense = pair(rows, columns, bias=tokens != 13)
    x = torch.randn(2, tokens, 5 * columns, generator=generator(1))
    torch.testing.assert_close(sparse(x), dense(x), rtol=1e-5, atol=1e-5)
    assert_same(sparse(x), sparse(x))


@pytest.mark.parametrize(("rows", "columns"), BLOCKS)
def test_gradients_are_those_of_the_dense_product(rows: int, columns: int) -> None:
    sparse, dense = pair(rows, columns)
    found = []
    for layer in (sparse, dense):
        x = torch.randn(3, 7, 5 * columns, generator=generator(1)).requires_grad_()
        (layer(x) ** 2).sum().backward()
        found.append((x.grad, layer.bias.grad))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    dense.weight.data = dense.weight.grad  # type: ignore[assignment]
    wanted = BlockSparseLinear.of(dense, sparse.matrix().kept()).blocks
    torch.testing.assert_close(sparse.blocks.grad, wanted.detach(), rtol=1e-4, atol=1e-4)


def test_the_operator_keeps_torchs_rules() -> None:
    sparse, _ = pair(16, 16)
    inputs = (torch.randn(9, 80), sparse.blocks, sparse.columns, sparse.starts, sparse.bias)
    assert set(torch.library.opcheck(torch.ops.secateur.block_product.default, inputs).values()) == {"SUCCESS"}
    assert block_product(*inputs).shape == (9, 48)


def test_nothing_and_everything_kept() -> None:
    layer = linear(32, 64)
    x = torch.randn(9, 32, generator=generator(1))
    nothing = BlockSparseLinear.of(layer, torch.zeros(2, 2, dtype=torch.bool))
    assert_same(nothing(x), layer.bias.detach().expand(9, 64).contiguous())
    everything = BlockSparseLinear.of(layer, torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(everything(x), layer(x), rtol=1e-5, atol=1e-5)
    assert_same(everything.to_linear().weight, layer.weight)
    model = nn.Sequential(layer, nn.ReLU())
    assert_same(with_blocks(model, {"0": torch.ones(2, 2, dtype=torch.bool)})(x), model(x))


def test_rows_of_the_input_may_come_in_any_order() -> None:
    sparse, _ = pair(32, 32)
    x = torch.randn(40, 160, generator=generator(1))
    order = torch.randperm(40, generator=generator(2))
    torch.testing.assert_close(sparse(x[order]), sparse(x)[order], rtol=1e-5, atol=1e-5)


def test_it_learns_its_blocks_and_no_others() -> None:
    sparse, _ = pair(16, 16)
    kept, x = sparse.matrix().kept(), torch.randn(30, 80, generator=generator(1))
    wanted = torch.randn(30, 48, generator=generator(2))
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(nn.functional.mse_loss(sparse(x), wanted))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    weight = from_blocked_csr(sparse.matrix())
    blocks = weight.view(3, 16, 5, 16).transpose(1, 2).abs().sum((2, 3)) > 0
    assert_same(blocks, kept)


def test_layers_are_exchanged_where_it_is_faster() -> None:
    model = nn.ModuleDict({"a": linear(64, 64), "b": linear(64, 64), "c": linear(64, 64)})
    one_gone = torch.ones(4, 4, dtype=torch.bool)
    one_gone[1, 2] = False
    small = with_blocks(model, {"a": mask(4, 4), "b": one_gone, "c": mask(8, 16)})
    assert [type(small[key]) for key in "abc"] == [BlockSparseLinear, nn.Linear, nn.Linear]
    assert not bool(small["b"].weight[16:32, 32:48].any()) and bool(model["b"].weight.all())
    assert type(with_blocks(model, {"b": one_gone}, dense_from=1.1)["b"]) is BlockSparseLinear
    with pytest.raises(ValueError, match="no linear layer 'd'"):
        with_blocks(model, {"d": one_gone})
    with pytest.raises(ValueError, match="whole blocks"):
        with_blocks(model, {"a": torch.zeros(5, 4, dtype=torch.bool)})
    model["c"].weight = model["a"].weight
    with pytest.raises(ValueError, match="another layer too"):
        with_blocks(model, {"a": one_gone})


def test_multiply_adds_are_those_of_kept_blocks() -> None:
    sparse, dense = pair(16, 16)
    module = nn.Sequential(sparse, nn.ReLU(), linear(48, 16))
    assert count_macs(module, torch.zeros(2, 7, 80)) == 14 * (sparse.multiply_adds() + 48 * 16)
    assert sparse.multiply_adds() < dense.weight.numel()


def test_inputs_of_another_width_are_refused() -> None:
    sparse, _ = pair(16, 16)
    with pytest.raises(ValueError, match="end in 80 features"):
        sparse(torch.zeros(2, 81))


def network() -> nn.Sequential:
    return nn.Sequential(linear(64, 128, 1), nn.GELU(), nn.LayerNorm(128), linear(128, 64, 2)).eval()


def saved(path: Path) -> nn.Module:
    small = with_blocks(network(), {"0": mask(8, 4), "3": mask(2, 4)})
    save_block_sparse(small, path)
    return small


def test_files_come_back_bit_for_bit(tmp_path: Path) -> None:
    small = saved(tmp_path / "small.safetensors")
    loaded = load_block_sparse(tmp_path / "small.safetensors", network)
    x = torch.randn(9, 64, generator=generator(1))
    assert_same(loaded(x), small(x))
    assert_same(dict(loaded.state_dict()), dict(small.state_dict()))
    assert (tmp_path / "small.safetensors").stat().st_size < 0.7 * sum(4 * p.numel() for p in network().parameters())


def changed(source: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    with safe_open(source, framework="pt") as file:
        header = json.loads(file.metadata()["secateur"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    change(header, tensors)
    save_file(tensors, source, {"secateur": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: t["0.col_indices"].fill_(10**12), "must lie in"),
        (lambda h, t: t["0.col_indices"].fill_(-1), "must lie in"),
        (lambda h, t: t["0.crow_indices"][-1:].fill_(10**9), "must rise"),
        (lambda h, t: t["0.crow_indices"][1:2].fill_(-5), "must rise"),
        (lambda h, t: t.update({"0.crow_indices": t["0.crow_indices"].int()}), "int64"),
        (lambda h, t: t.update({"0.values": t["0.values"][1:].clone()}), "do not make up"),
        (lambda h, t: h["layers"]["0"].update(rows=0), "whole numbers"),
        (lambda h, t: h["layers"]["0"].update(kept="many"), "whole numbers"),
        (lambda h, t: h["layers"]["0"].update(in_features=10**9), "but the network's is"),
        (lambda h, t: h["layers"].update({"1": h["layers"]["0"]}), "no linear layer '1'"),
        (lambda h, t: h.update(layers=[]), "layers and cuts"),
        (lambda h, t: t.pop("0.bias"), "one of file and network"),
        (lambda h, t: t.pop("2.weight"), "no tensor '2.weight'"),
        (lambda h, t: t.update(other=torch.zeros(1)), "'other' is none"),
        (lambda h, t: t.update({"2.weight": torch.zeros(3)}), "'2.weight' is"),
    ],
)
def test_hostile_files_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None], message: str
) -> None:
    path = tmp_path / "small.safetensors"
    saved(path)
    changed(path, change)
    with pytest.raises(ValueError, match=message):
        load_block_sparse(path, network)


def perceptron() -> nn.Sequential:
    return nn.Sequential(linear(32, 128, 1), nn.GELU(), linear(128, 32, 2)).eval()


def feed_forward() -> Network:
    module = perceptron()
    return Network(module, [feed_forward_group(module, "neurons", up="0", down="2")])


def test_empty_columns_of_blocks_go_as_channels(tmp_path: Path) -> None:
    target = feed_forward()
    keep = {"0": torch.ones(4, 2, dtype=torch.bool), "2": torch.ones(2, 8, dtype=torch.bool)}
    # Neurons 32 to 63 are read by nobody; of 64 to 95 only the lower half is not, which is half a block of the first.
    keep["2"][:, 2:5] = False
    keep["0"][3, 1] = keep["2"][1, 0] = False
    write_block_zeros(target.module, keep)
    small, left = compact(target, keep)
    assert small.module[0].weight.shape == (96, 32) and left["0"].shape == (3, 2) and left["2"].shape == (2, 6)
    assert_same(left["2"], keep["2"][:, [0, 1, 4, 5, 6, 7]])
    x = torch.randn(9, 32, generator=generator(1))
    torch.testing.assert_close(small.module(x), target.module(x), rtol=1e-5, atol=1e-5)
    sparse = with_blocks(small.module, left)
    assert isinstance(sparse[0], BlockSparseLinear)
    torch.testing.assert_close(sparse(x), target.module(x), rtol=1e-5, atol=1e-5)
    save_block_sparse(sparse, tmp_path / "a", small)
    assert_same(load_block_sparse(tmp_path / "a", perceptron)(x), sparse(x))


def test_nothing_is_cut_where_no_blocks_line_up() -> None:
    target = feed_forward()
    keep = {"0": mask(4, 2), "2": torch.eye(2, 8, dtype=torch.bool).roll(1, 0)}
    keep["2"][0, ::2], keep["2"][1, 1::2] = True, True
    write_block_zeros(target.module, keep)
    small, left = compact(target, keep)
    assert small.module[0].weight.shape == (128, 32)
    assert_same(left, keep)
