"""Adapters start at nothing, merge into what they were, and leave zeros alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor, nn

from secateur.recovery.lora import Lora, MaskLora, Perp, ScaleLora
from secateur.recovery.zeros import HoldZeros, zeros_of
from secateur.training import Shuffled, fit
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.networks import convolutional, perceptron
from tests.secateur.recovery.test_normalise import sparse
from tests.secateur.toys import generator

KINDS = (Lora(rank=2), MaskLora(rank=2), ScaleLora(rank=3))


class Fitted(lightning.LightningModule):
    """A network that learns what another one makes of random inputs."""

    def __init__(self, network: nn.Module, teacher: nn.Module, width: int = 6, rate: float = 0.02) -> None:
        super().__init__()
        self.network, self.rate = network, rate
        self.inputs = torch.randn(64, width, generator=generator(4), dtype=torch.float64)
        with torch.no_grad():
            self.outputs = teacher(self.inputs)

    def loss(self, rows: Any = slice(None)) -> Tensor:
        return (self.network(self.inputs[rows]) - self.outputs[rows]).square().mean()

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.rate)


def moved(parameters: Iterator[nn.Parameter]) -> None:
    """As if trained."""
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(index), dtype=parameter.dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_the_pruned_network_bit_for_bit(kind: Lora) -> None:
    for network, shape in ((sparse(perceptron(6, 9, 3), 0.7), (6,)), (sparse(convolutional(), 0.5), (2, 6, 6))):
        inputs = torch.randn(5, *shape, generator=generator(1), dtype=torch.float64)
        before, state = network(inputs), copy.deepcopy(network.state_dict())
        prepared = Perp(kind).prepare(network)
        assert_same(before, network(inputs))
        prepared.merge()
        assert_same(state, network.state_dict())
        assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged_and_zeros_stay(kind: Lora) -> None:
    for network, shape in ((sparse(perceptron(6, 9, 3), 0.7), (6,)), (sparse(convolutional(), 0.5), (2, 6, 6))):
        inputs = torch.randn(5, *shape, generator=generator(1), dtype=torch.float64)
        dense, names, zeros = network(inputs), list(network.state_dict()), zeros_of(network)
        prepared = Perp(kind).prepare(network)
        moved(prepared.parameters())
        adapted = network(inputs)
        assert not torch.allclose(adapted, dense)
        torch.testing.assert_close(prepared.merge()(inputs), adapted, rtol=0, atol=1e-6)
        assert list(network.state_dict()) == names
        if type(kind) is not Lora:
            assert_same(zeros, zeros_of(network))


def test_attention_takes_adapters_on_its_fast_path_too() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens = torch.randn(2, 3, 8, generator=generator())
    before, weight = layer(tokens), layer.linear1.weight.detach().clone()
    prepared = Perp(Lora(rank=2)).prepare(layer)
    assert set(prepared.layers) == {"self_attn.out_proj", "linear1", "linear2"}
    assert_same(weight, layer.linear1.weight.detach())
    # Only nearly: torch takes kernels that round otherwise where a weight requires no gradients.
    torch.testing.assert_close(layer(tokens), before, rtol=1e-4, atol=1e-5)
    moved(prepared.parameters())
    adapted = layer(tokens)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), adapted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(prepared.merge()(tokens), adapted, rtol=1e-4, atol=1e-5)


def test_only_what_was_asked_for_trains_and_its_share_is_told() -> None:
    network = convolutional()  # convolutions 2*4*9 and 4*2*4, batch norm 4, linear 16*3
    total = 72 + 4 + 8 + 32 + 4 + 48 + 3
    assert Perp(None, biases=True, norms=False).prepare(network).share == (4 + 4 + 3) / total
    assert Perp(None, biases=False, norms=True).prepare(copy.deepcopy(network)).share == 8 / total
    prepared = Perp(MaskLora(rank=2), biases=False, norms=False).prepare(network, ["6"])
    assert prepared.share == 2 * (16 + 3) / total
    assert {id(p) for p in prepared.parameters()} == {id(p) for p in network[6].parametrizations.weight[0].parameters()}


def test_a_full_rank_mask_lora_reaches_the_masked_retraining() -> None:
    teacher = perceptron(6, 8, 3, seed=1)
    losses = []
    for adapters in (True, False):
        network = sparse(teacher, 0.5)
        module = Fitted(network, teacher)
        start = module.loss().item()
        zeros = zeros_of(network)
        prepared = Perp(MaskLora(rank=8, alpha=8)).prepare(network) if adapters else None
        fit(module, Shuffled(64, 64), steps=400, callbacks=[] if adapters else [HoldZeros()])
        if prepared is not None:
            prepared.merge()
        assert_same(zeros, zeros_of(network))
        losses.append(module.loss().item() / start)
    assert losses[0] < 1.05 * losses[1] < 0.5


def test_frozen_weights_get_no_gradients_and_a_seed_repeats() -> None:
    teacher = perceptron(6, 8, 3, seed=1)

    def trained() -> dict[str, Tensor]:
        network = sparse(teacher, 0.5)
        prepared = Perp(MaskLora(rank=2, seed=3)).prepare(network)
        fit(Fitted(network, teacher), Shuffled(64, 16), steps=3, callbacks=[HoldZeros()])
        assert network[0].parametrizations.weight.original.grad is None
        assert bool(network[0].parametrizations.weight[0].b.any())
        return prepared.merge().state_dict()

    assert_deterministic(lambda: dict(trained()))


def test_what_cannot_be_adapted_is_refused() -> None:
    network = perceptron(4, 4, 4)
    with pytest.raises(ValueError, match="no modules"):
        Perp().prepare(network, ["7"])
    with pytest.raises(ValueError, match="no weight"):
        Perp().prepare(network, ["1"])
    Perp().prepare(network, ["0"])
    with pytest.raises(ValueError, match="already"):
        Perp().prepare(network, ["0"])
    tied = perceptron(4, 4, 4)
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="shares"):
        Perp().prepare(tied, ["2"])
    assert Perp().prepare(tied).layers == {}
    with pytest.raises(ValueError, match="rank"):
        Lora(rank=0)
