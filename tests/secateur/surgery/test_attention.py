"""Written unit maps: heads, grouped queries, fused layers, gated feed-forward, whole blocks, whole norm groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.importance.magnitude import Magnitude
from secateur.surgery import Block, Count, Network
from secateur.surgery.attention import (
    block_group,
    feed_forward_group,
    fused_head_group,
    head_group,
    multihead_attention_group,
)
from secateur.surgery.cost import count_macs, count_params
from secateur.surgery.slim_attention import SlimAttention
from secateur.units import Member, UnitGroup
from tests.contracts import (
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_scores_fit,
)
from tests.secateur.surgery.networks import pixels, seeded, tokens


class Attention(nn.Module):
    """Separate q, k, v with biases, key-value heads shared by query heads; the number of heads is an attribute."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.kv_heads = 6, 6 if fused else 3
        if fused:
            self.qkv = nn.Linear(12, 3 * 24)
        else:
            self.q, self.k, self.v = nn.Linear(12, 24), nn.Linear(12, 12), nn.Linear(12, 12)
        self.out = nn.Linear(24, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        q, k, v = self.qkv(x).chunk(3, dim=-1) if hasattr(self, "qkv") else (self.q(x), self.k(x), self.v(x))
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (y.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for y in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2)), None


class Layer(nn.Module):
    """Attention with grouped queries, then with a fused layer; GEGLU, then SwiGLU with a gate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(4))
        self.attn, self.fused = Attention(), Attention(fused=True)
        self.geglu, self.geglu_down = nn.Linear(12, 2 * 10), nn.Linear(10, 12)
        self.up, self.gate, self.down = nn.Linear(12, 8), nn.Linear(12, 8, bias=False), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norms[0](x))[0]
        x = x + self.fused(self.norms[1](x))[0]
        value, gate = self.geglu(self.norms[2](x)).chunk(2, dim=-1)
        x = x + self.geglu_down(value * F.gelu(gate))
        y = self.norms[3](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def mapped() -> Network:
    module = seeded(Layer)
    counts = [Count("attn", "heads", "", 2), Count("attn", "kv_heads", "")]
    heads, counted = head_group(
        module, "heads", q="attn.q", k="attn.k", v="attn.v", out="attn.out", heads=6, kv_heads=3, counts=counts
    )
    fused_counts = [Count("fused", "heads", ""), Count("fused", "kv_heads", "")]
    fused, fused_counted = fused_head_group(
        module, "fused heads", qkv="fused.qkv", out="fused.out", heads=6, counts=fused_counts
    )
    groups = [
        heads,
        fused,
        feed_forward_group(module, "geglu", up="geglu", down="geglu_down", fused_gate=True),
        feed_forward_group(module, "swiglu", up="up", gate="gate", down="down"),
    ]
    blocks: dict[str, tuple[Block, ...]] = {}
    for name in ("attn", "fused"):
        group, entry = block_group(module, f"block {name}", name, outputs=2)
        groups.append(group)
        blocks |= entry
    return Network(module, groups, tokens(), blocks=blocks, counts=[*counted, *fused_counted])


def run(target: Any) -> Tensor:
    with torch.no_grad():
        return target(tokens())


def keep_of(network: Network, **lost: list[int]) -> dict[str, Tensor]:
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in network.groups()}
    for name, units in lost.items():
        keep[name.replace("_", " ")][units] = False
    return keep


@pytest.mark.parametrize(
    "lost",
    [
        {"heads": [1]},
        {"fused_heads": [0, 2, 5]},
        {"geglu": [0, 1, 5, 9]},
        {"swiglu": [7]},
        {"block_attn": [0]},
        {"block_attn": [0], "block_fused": [0], "heads": [0, 1]},
        {"heads": [0, 2], "fused_heads": [0, 1, 2, 3, 4], "geglu": [3], "swiglu": [0, 2, 4], "block_fused": [0]},
    ],
)
def test_mask_equals_cut(lost: dict[str, list[int]]) -> None:
    network = mapped()
    keep = keep_of(network, **lost)
    assert_mask_equals_cut(network, keep, run)
    smaller = network.cut(keep)
    assert count_params(smaller.module) < count_params(network.module)
    assert count_macs(smaller.module, tokens()) < count_macs(network.module, tokens())


def test_contracts() -> None:
    network = mapped()
    assert_full_keep_changes_nothing(network)
    assert_mask_of_ones_changes_nothing(network, run)
    assert_scores_fit(Magnitude().score(network), network.groups())


def test_heads_and_attributes_follow_the_cut() -> None:
    network = mapped()
    smaller = network.cut(keep_of(network, heads=[1], fused_heads=[0, 1]))
    attention = smaller.module.attn
    assert (attention.heads, attention.kv_heads, attention.q.out_features, attention.out.in_features) == (4, 2, 16, 16)
    assert torch.equal(
        attention.q.weight, torch.cat([network.module.attn.q.weight[:8], network.module.attn.q.weight[16:]])
    )
    assert (smaller.module.fused.heads, smaller.module.fused.qkv.out_features) == (4, 3 * 16)
    assert network.module.attn.heads == 6
    again = smaller.cut(keep_of(smaller, heads=[0], fused_heads=[3]))
    assert (again.module.attn.heads, again.module.attn.kv_heads, again.module.fused.heads) == (2, 1, 3)
    assert again.cuts.attributes[("attn", "heads")] == (6, 2)


def test_costs_of_heads_and_blocks_count_attention() -> None:
    network = mapped()
    for group in network.groups():
        smaller = network.cut(keep_of(network, **{group.name.replace(" ", "_"): [group.size - 1]})).module
        assert count_params(network.module) - count_params(smaller) == group.cost["params"][-1], group.name
        saved = count_macs(network.module, tokens()) - count_macs(smaller, tokens())
        assert saved == pytest.approx(float(group.cost["macs"][-1])), group.name


def test_a_branch_without_units_leaves_its_bias_and_a_block_nothing() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    group = UnitGroup("hidden", 3, (Member("0.weight"), Member("0.bias"), Member("1.weight", 1)), min_keep=0)
    none = {"hidden": torch.zeros(3, dtype=torch.bool)}
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    emptied = Network(module, (group,)).cut(none)
    torch.testing.assert_close(emptied(x), module[1].bias.expand(2, 4))
    wrapped = nn.Sequential(module)
    depth, blocks = block_group(wrapped, "depth", "0")
    gone = Network(wrapped, (depth,), blocks=blocks).cut({"depth": torch.tensor([False])})
    assert torch.equal(gone(x), torch.zeros(2, 4))


def test_blocks_compete_in_one_group() -> None:
    module = nn.Sequential(seeded(Layer), seeded(Layer), nn.Linear(12, 2))
    depth = UnitGroup("depth", 2, (), min_keep=0)
    network = Network(module, (depth,), tokens(), blocks={"depth": (Block("0", "input"), Block("1", "input"))})
    assert network.groups()[0].cost["params"].tolist() == [count_params(module[0])] * 2
    assert float(network.groups()[0].cost["macs"].sum()) == count_macs(module, tokens()) - 2 * 5 * 12 * 2
    keep = {"depth": torch.tensor([False, True])}
    assert_mask_equals_cut(network, keep, run)
    smaller = network.cut(keep)
    assert smaller.groups()[0].size == 1
    assert [block.module for block in smaller.blocks["depth"]] == ["1"]
    assert_mask_equals_cut(smaller, {"depth": torch.tensor([False])}, run)


def test_half_a_block_lies_between_its_input_and_its_output() -> None:
    module = nn.Sequential(seeded(lambda: nn.Linear(4, 4)))  # type: ignore[arg-type]
    depth, blocks = block_group(module, "depth", "0", leaves="input")
    network = Network(module, (depth,), blocks=blocks)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    with network.masked({"depth": torch.tensor([0.25])}):
        halfway = network(x)
    torch.testing.assert_close(halfway, 0.75 * x + 0.25 * network(x))
    assert torch.equal(network.cut({"depth": torch.tensor([False])})(x), x)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", ["nothing", "bool", "causal", "padding", "both"])
def test_slim_attention_is_multihead_attention(batch_first: bool, masked: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = nn.MultiheadAttention(12, 3, batch_first=batch_first).eval()
    nn.init.uniform_(dense.in_proj_bias, generator=torch.Generator().manual_seed(0))
    slim = SlimAttention.like(dense)
    x = tokens(2, 5) if batch_first else tokens(2, 5).transpose(0, 1)
    kwargs: dict[str, Any] = {}
    if masked in ("bool", "both"):
        kwargs["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).triu(2)
    if masked == "causal":
        kwargs["attn_mask"] = torch.zeros(6, 5, 5).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    if masked in ("padding", "both"):
        kwargs["key_padding_mask"] = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        for need_weights in (True, False):
            expected, weights = dense(x, x, x, need_weights=need_weights, **kwargs)
            output, ours = slim(x, x, x, need_weights=need_weights, **kwargs)
            torch.testing.assert_close(output, expected)
            assert (ours is None) == (weights is None)
            if weights is not None:
                torch.testing.assert_close(ours, weights)
        if masked == "nothing" and batch_first:
            torch.testing.assert_close(slim(x[0], x[0], x[0])[0], dense(x[0], x[0], x[0])[0])


def test_whole_norm_groups() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 2, 1)))  # type: ignore[arg-type]
    pairs = torch.arange(8).reshape(4, 2)
    tensors = (("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("3.weight", 1))
    whole = UnitGroup("whole", 4, tuple(Member(name, dim, pairs) for name, dim in tensors))
    network = Network(module, (whole,), pixels())
    keep = {"whole": torch.tensor([True, False, False, True])}
    assert network.cut(keep).module[1].num_groups == 2
    with torch.no_grad():
        assert_mask_equals_cut(network, keep, lambda target: target(pixels()))
    single = UnitGroup("single", 8, tuple(Member(name, dim) for name, dim in tensors))
    with pytest.raises(ValueError, match=r"^1: 7 channels are no whole number of norm groups of 2"):
        Network(module, (single,)).cut({"single": torch.arange(8) > 0})


def test_layers_that_do_not_divide_are_refused() -> None:
    module = seeded(Layer)
    with pytest.raises(ValueError, match=r"attn.q: 24 rows do not divide"):
        head_group(module, "heads", q="attn.q", k="attn.k", v="attn.v", out="attn.out", heads=7)
    with pytest.raises(ValueError, match="5 query heads do not divide into 3"):
        head_group(module, "heads", q="attn.q", k="attn.k", v="attn.v", out="attn.out", heads=5, kv_heads=3)
    with pytest.raises(ValueError, match="group 'ff': up: 8 rows"):
        feed_forward_group(module, "ff", up="up", down="geglu_down")
    with pytest.raises(ValueError, match="no layer 'missing'"):
        feed_forward_group(module, "ff", up="missing", down="down")
    with pytest.raises(ValueError, match="share a width"):
        multihead_attention_group(nn.Sequential(nn.MultiheadAttention(12, 3, kdim=8)), "0")
