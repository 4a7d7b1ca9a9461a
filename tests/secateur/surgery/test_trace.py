"""Unit maps by tracing, held to the contracts and to torch-pruning's own cuts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from secateur.allocation import Budget, allocate
from secateur.importance.magnitude import Magnitude
from secateur.surgery import Network, trace
from secateur.surgery.cost import count_bytes, count_macs, count_params
from secateur.surgery.verify import mismatch
from tests.contracts import (
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_same,
    assert_scores_fit,
)
from tests.secateur.surgery import networks
from tests.secateur.surgery.networks import pixels, seeded, tokens

KINDS: list[tuple[type[nn.Module], Tensor]] = [
    (networks.Residual, pixels()),
    (networks.Dense, pixels()),
    (networks.Mobile, pixels()),
    (networks.Decoder, pixels()),
    (networks.Transformer, tokens()),
    (networks.Recurrent, tokens()),
    (networks.Mixer, tokens()),
]
every_kind = pytest.mark.parametrize(("kind", "inputs"), KINDS, ids=[kind.__name__ for kind, _ in KINDS])


def half(network: Network, seed: int = 0) -> dict[str, Tensor]:
    """Half of each group stays, at random."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in network.groups():
        keep[group.name] = torch.zeros(group.size, dtype=torch.bool)
        keep[group.name][torch.randperm(group.size, generator=generator)[: max(1, group.size // 2)]] = True
    return keep


@every_kind
def test_contracts(kind: type[nn.Module], inputs: Tensor) -> None:
    network = trace(seeded(kind), inputs)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}

    def run(target: Any) -> Tensor:
        with torch.no_grad():
            return target(inputs)

    assert_full_keep_changes_nothing(network)
    assert_mask_of_ones_changes_nothing(network, run)
    for seed in range(3):
        assert_mask_equals_cut(network, half(network, seed), run, rtol=1e-4, atol=1e-5)
    assert_same(before, dict(network.module.state_dict()), "the network after masks and cuts")
    scores = Magnitude().score(network)
    assert_scores_fit(scores, network.groups())
    budget = Budget(share=0.6, cost="params")
    assert count_params(network.cut(allocate(scores, network.groups(), budget)).module) < count_params(network.module)


@every_kind
def test_cut_in_two_steps_equals_cut_at_once(kind: type[nn.Module], inputs: Tensor) -> None:
    network = trace(seeded(kind), inputs)
    keep = half(network)
    first = {name: mask | (torch.arange(len(mask)) % 2 == 0) for name, mask in keep.items()}
    second = {name: mask[first[name]] for name, mask in keep.items()}
    at_once, stepwise = network.cut(keep), network.cut(first).cut(second)
    assert_same(dict(at_once.module.state_dict()), dict(stepwise.module.state_dict()))
    assert {key: (kept.size, kept.rows.tolist()) for key, kept in at_once.cuts.rows.items()} == {
        key: (kept.size, kept.rows.tolist()) for key, kept in stepwise.cuts.rows.items()
    }


@every_kind
def test_costs_are_what_removing_one_unit_saves(kind: type[nn.Module], inputs: Tensor) -> None:
    network = trace(seeded(kind), inputs)
    for group in network.groups():
        keep = {other.name: torch.ones(other.size, dtype=torch.bool) for other in network.groups()}
        keep[group.name][-1] = False
        smaller = network.cut(keep).module
        assert count_params(network.module) - count_params(smaller) == group.cost["params"][-1], group.name
        assert count_bytes(network.module) - count_bytes(smaller) == group.cost["bytes"][-1], group.name
        saved = count_macs(network.module, inputs) - count_macs(smaller, inputs)
        assert saved == pytest.approx(float(group.cost["macs"][-1])), group.name


@every_kind
def test_masks_are_differentiable_batch_by_batch(kind: type[nn.Module], inputs: Tensor) -> None:
    network = trace(seeded(kind), inputs)
    masks = {group.name: torch.full((group.size,), 0.7, requires_grad=True) for group in network.groups()}
    with network.masked(masks):
        for _ in range(2):
            network(inputs).square().sum().backward()
    for name, mask in masks.items():
        assert mask.grad is not None and bool((mask.grad != 0).any()), name


CONVOLUTIONAL = [(kind, inputs) for kind, inputs in KINDS if kind not in (networks.Transformer, networks.Recurrent)]


@pytest.mark.parametrize(("kind", "inputs"), CONVOLUTIONAL, ids=[kind.__name__ for kind, _ in CONVOLUTIONAL])
def test_cuts_equal_those_of_torch_pruning(kind: type[nn.Module], inputs: Tensor) -> None:
    network = trace(seeded(kind), inputs)
    everything = {group.name: torch.ones(group.size, dtype=torch.bool) for group in network.groups()}
    for group in network.groups():
        peer = copy.deepcopy(network.module)
        graph = torch_pruning.DependencyGraph().build_dependency(peer, inputs, verbose=False)
        lost = [0, group.size - 2] if group.size > 2 else [0]
        root = next(member for member in group.members if member.param == f"{group.name}.weight")
        channels = lost if root.rows is None else root.rows[lost].flatten().tolist()
        layer = peer.get_submodule(group.name)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        graph.get_pruning_group(layer, prune, channels).prune()
        _finish(peer, network.module)
        keep = everything[group.name].clone()
        keep[lost] = False
        ours = network.cut(everything | {group.name: keep})
        with torch.no_grad():
            torch.testing.assert_close(ours(inputs), peer(inputs), rtol=1e-5, atol=1e-6)
        assert {name: tensor.shape for name, tensor in ours.module.state_dict().items()} == {
            name: tensor.shape for name, tensor in peer.state_dict().items()
        }


def _finish(peer: nn.Module, dense: nn.Module) -> None:
    """What torch-pruning leaves undone: a group norm's number of groups, and the shape that an RMS norm expects."""
    for name, norm in peer.named_modules():
        original = dense.get_submodule(name)
        if isinstance(norm, nn.GroupNorm):
            norm.num_groups = norm.num_channels * original.num_groups // original.num_channels
        elif isinstance(norm, nn.RMSNorm):
            norm.normalized_shape = tuple(norm.weight.shape)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 12)
        self.wide = nn.Linear(12, 16)
        self.narrow = nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        value, gate = self.wide(x).chunk(2, dim=-1)
        return self.head((x + self.narrow(value * torch.sigmoid(gate))).mean(dim=1))


def test_a_fused_gate_is_one_unit_with_its_value() -> None:
    network = trace(seeded(Gated), tokens())
    group = next(group for group in network.groups() if group.name == "wide")
    assert group.size == 8
    assert group.members[0].rows is not None
    assert group.members[0].rows.tolist() == [[channel, channel + 8] for channel in range(8)]


class Rescaled(nn.Module):
    """Channels that are normalised by hand: no unit can go without changing the others."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Conv2d(3, 6, 3)
        self.after = nn.Conv2d(6, 4, 3)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.after(torch.softmax(self.mixed(x), dim=1))))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3)
        self.hidden = nn.Conv2d(6, 5, 3)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.head(torch.relu(self.hidden(features))), features


def test_what_tracing_gets_wrong_is_left_out_with_the_reason() -> None:
    network = trace(seeded(Rescaled), pixels())
    assert [group.name for group in network.groups()] == ["after"]
    assert "differs from the masked one's" in network.left_out["mixed"]
    network = trace(seeded(TwoOutputs), pixels())
    assert [group.name for group in network.groups()] == ["hidden"]
    assert "output" in network.left_out["features"]
    assert "output" in network.left_out["head"]


class Sequences(nn.Module):
    """Embeddings, positions and a class token share one width, which may narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.head = (
            nn.Embedding(20, 8),
            nn.Linear(8, 14),
            nn.Linear(14, 8),
            nn.Linear(8, 3),
        )
        self.positions, self.token = nn.Parameter(torch.zeros(1, 5, 8)), nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x) + self.positions], dim=1)
        return self.head((x + self.down(nn.functional.gelu(self.up(x))))[:, 0])


class ChannelsLast(nn.Module):
    """A ConvNeXt block: depthwise, layer norm over channels that moved last, a scale of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down, self.head = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + (self.scale * self.down(nn.functional.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(x.mean(dim=(2, 3)))


class Translator(nn.Module):
    """torch's encoder and decoder, with cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = nn.Transformer(12, 3, 1, 1, 20, batch_first=True), nn.Linear(12, 2)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.both(source, target))


class HandMadeAttention(nn.Module):
    """Rows of q, k and v that a reshape divides into heads, which tracing does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(
    ("kind", "inputs", "found"),
    [
        (Sequences, torch.arange(10).reshape(2, 5), {"up": 14, "down": 8}),
        (ChannelsLast, {"x": pixels()}, {"stem": 8, "up": 16}),
        (
            Translator,
            (tokens(), tokens(length=4)),
            {
                "both.encoder.layers.0.self_attn": 3,
                "both.encoder.layers.0.linear1": 20,
                "both.decoder.layers.0.self_attn": 3,
                "both.decoder.layers.0.multihead_attn": 3,
                "both.decoder.layers.0.linear1": 20,
            },
        ),
        (HandMadeAttention, tokens(), {}),
    ],
)
def test_which_units_are_found(kind: type[nn.Module], inputs: Any, found: dict[str, int]) -> None:
    network = trace(seeded(kind), inputs)
    assert {group.name: group.size for group in network.groups()} == found
    assert mismatch(network, half(network)) is None


def test_ignored_layers_keep_all_their_outputs() -> None:
    module = seeded(networks.Residual)
    network = trace(module, pixels(), ignored=["a1", module.get_submodule("b1.0")])
    assert [group.name for group in network.groups()] == ["stem.0", "b2.0"]
    with pytest.raises(ValueError, match="no module 'a3'"):
        trace(module, pixels(), ignored=["a3"])


def test_tracing_leaves_the_module_as_it_was() -> None:
    module = seeded(networks.Recurrent).train()
    module.embed.weight.requires_grad_(False)
    module.head.eval()
    network = trace(module, tokens())
    assert module.training and not module.head.training
    assert not module.embed.weight.requires_grad
    assert not network.cut(half(network)).module.embed.weight.requires_grad
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def test_bad_models_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Failing cannot be traced: module 'inner.1'"):
        trace(seeded(Failing), pixels())
    assert "shared" in trace(seeded(Tied), tokens()).left_out["first"]
    quantised = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    quantised[1].weight = nn.Parameter(torch.zeros(2, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'1.weight' is quantised"):
        trace(quantised, torch.randn(1, 4))


def test_tracing_and_cutting_need_no_memory() -> None:
    with torch.device("meta"):
        module, inputs = networks.Residual(), torch.empty(1, 3, 8, 8)
    network = trace(module, inputs)
    smaller = network.cut(half(network))
    assert smaller(inputs).shape == (1, 5)
    assert all(tensor.is_meta for tensor in smaller.tensors().values())


@every_kind
def test_cut_networks_export(kind: type[nn.Module], inputs: Tensor) -> None:
    network = trace(seeded(kind), inputs)
    smaller = network.cut(half(network)).module
    exported = torch.export.export(smaller, (inputs,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(inputs), smaller(inputs))
