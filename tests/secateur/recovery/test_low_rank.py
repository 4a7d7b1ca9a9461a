"""Factorised layers are truncated decompositions, and training makes them low rank."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor, nn

from secateur.recovery.low_rank import LowRank, TrainedRankPruning, Truncation, rank_for_energy
from secateur.solvers.gram import Gram, input_grams
from secateur.training import Shuffled, fit
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.networks import convolutional, perceptron, refilled, skipped
from tests.secateur.recovery.test_lora import Fitted
from tests.secateur.recovery.test_refit import correlated
from tests.secateur.toys import generator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_the_error_is_what_was_dropped() -> None:
    matrix = normal(7, 5)
    values = torch.linalg.svdvals(matrix)
    for rank in (1, 3, 5):
        b, a = Truncation(rank=rank).factors(matrix)
        assert (b.shape, a.shape) == ((7, rank), (rank, 5))
        torch.testing.assert_close((matrix - b @ a).square().sum(), values[rank:].square().sum())


def test_energy_is_the_least_rank_that_holds_it() -> None:
    values = torch.tensor([2.0, 1.0, 1.0, 0.0])
    shares = {0.5: 1, 0.6: 1, 0.7: 2, 0.84: 3, 0.999: 3, 1.0: 4}
    assert {energy: rank_for_energy(values, energy) for energy in shares} == shares


def test_with_a_gram_matrix_the_outputs_error_is_least() -> None:
    matrix, inputs = normal(6, 8), correlated(60, 8)
    gram = Gram(8, dtype=torch.float64).add(inputs)
    root = torch.linalg.cholesky(gram.mean)
    dropped = torch.linalg.svdvals(matrix @ root)[3:].square().sum()

    def error(b: Tensor, a: Tensor) -> Tensor:
        return (inputs @ (matrix - b @ a).T).square().sum(1).mean()

    whitened = error(*Truncation(rank=3).factors(matrix, gram, damp=0))
    torch.testing.assert_close(whitened, dropped)
    assert whitened < error(*Truncation(rank=3).factors(matrix))


class Shapes(nn.Module):
    """Convolutions of unequal kernels, strides, paddings and dilations."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"dtype": torch.float64}
        self.first = skipped(nn.Conv2d, 6, 9, (3, 2), stride=(2, 1), padding=(1, 2), **options)
        self.second = skipped(nn.Conv2d, 9, 8, 3, padding="same", dilation=2, bias=False, **options)
        self.third = skipped(nn.Conv2d, 8, 7, 3, padding=1, padding_mode="reflect", **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


@pytest.mark.parametrize("reading", ["channel", "spatial"])
def test_a_factorised_layer_does_what_the_truncated_one_does(reading: Any) -> None:
    network = refilled(Shapes())
    truncation = Truncation(rank=2, reading=reading)
    thin = LowRank(truncation).factorise(network)
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in network.parameters())
    with torch.no_grad():
        for name in ("first", "second", "third"):
            assert isinstance(thin.get_submodule(name), nn.Sequential)
            weight = network.get_submodule(name).weight
            b, a = truncation.factors(truncation.matrix(weight))
            weight.copy_(truncation.weight(b @ a, weight.shape))
    images = normal(2, 6, 9, 10)
    torch.testing.assert_close(thin(images), network(images))


def test_full_rank_changes_nothing_bit_for_bit() -> None:
    network = convolutional()
    for truncation in (Truncation(energy=1.0), Truncation(rank=99), Truncation(energy=1.0, reading="spatial")):
        whole = LowRank(truncation).factorise(network)
        assert_same(dict(network.state_dict()), dict(whole.state_dict()))
        assert [type(part) for part in whole] == [type(part) for part in network]


def test_grams_of_a_networks_inputs_help_and_it_is_left_alone() -> None:
    network = perceptron(12, 16, 12, 4)
    inputs = correlated(80, 12)
    state = copy.deepcopy(dict(network.state_dict()))
    with torch.no_grad(), input_grams(network) as grams:
        network(inputs)
    plain, aware = (
        assert_deterministic(lambda g=g: dict(LowRank(Truncation(rank=3)).factorise(network, ["0"], g).state_dict()))
        for g in (None, grams)
    )
    first = network[0](inputs)

    def error(thin: dict[str, Tensor]) -> Tensor:
        return (inputs @ thin["0.0.weight"].T @ thin["0.1.weight"].T + thin["0.1.bias"] - first).square().mean()

    assert error(aware) < error(plain)
    assert_same(state, dict(network.state_dict()))


def test_attention_keeps_its_projections_and_its_fast_path() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True).eval()
    thin = LowRank(Truncation(rank=2)).factorise(layer)
    assert isinstance(thin.linear1, nn.Sequential)
    assert isinstance(thin.self_attn.out_proj, nn.Linear)
    tokens = torch.randn(2, 3, 16, generator=generator())
    with torch.no_grad():
        fast = thin(tokens)
    torch.testing.assert_close(fast, thin(tokens), rtol=1e-4, atol=1e-5)


def test_the_subgradient_is_that_of_the_nuclear_norm() -> None:
    weight = normal(5, 4).requires_grad_()
    torch.linalg.matrix_norm(weight, "nuc").backward()
    module = Fitted(perceptron(4, 5), perceptron(4, 5), width=4)
    callback = TrainedRankPruning(Truncation(energy=1.0), every=1, nuclear_weight=0.5)
    with torch.no_grad():
        module.network[0].weight.copy_(weight)
    callback.on_train_batch_start(lightning.Trainer.__new__(lightning.Trainer), module, None, 0)
    module.network[0].weight.grad = torch.zeros(5, 4, dtype=torch.float64)
    callback.on_before_optimizer_step(lightning.Trainer.__new__(lightning.Trainer), module, None)  # type: ignore[arg-type]
    torch.testing.assert_close(module.network[0].weight.grad, 0.5 * weight.grad)
    assert_same(weight.detach(), module.network[0].weight.detach())


def test_training_lowers_the_rank_and_the_split_costs_nothing() -> None:
    teacher = perceptron(6, 10)
    with torch.no_grad():
        teacher[0].weight.copy_(normal(10, 2) @ normal(2, 6, seed=1))
    ranks = []

    class Watched(TrainedRankPruning):
        def _truncate(self, module: nn.Module) -> None:
            super()._truncate(module)
            ranks.append(self.ranks["network.0"])

    def train() -> dict[str, Tensor]:
        ranks.clear()
        module = Fitted(perceptron(6, 10, seed=5), teacher, rate=0.05)
        fit(module, Shuffled(64, 64), steps=120, callbacks=[Watched(Truncation(energy=0.98), 30, 0.05)])
        return dict(module.network.state_dict())

    state = assert_deterministic(train)
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == 2 < ranks[0]
    network = perceptron(6, 10)
    network.load_state_dict(state)
    thin = LowRank(Truncation(energy=1 - 1e-9)).factorise(network)
    inputs = normal(9, 6)
    assert len(thin[0]) == 2 and len(thin[0][0].weight) == 2
    torch.testing.assert_close(thin(inputs), network(inputs))


def test_without_truncation_and_weight_training_is_as_ever() -> None:
    states = []
    for callbacks in ([], [TrainedRankPruning(Truncation(energy=1.0), 1, 0.0)]):
        module = Fitted(perceptron(6, 8, 3), perceptron(6, 8, 3, seed=7))
        fit(module, Shuffled(64, 16), steps=4, callbacks=callbacks)
        states.append(dict(module.network.state_dict()))
    assert_same(*states)


def test_what_cannot_be_factorised_is_refused() -> None:
    network = convolutional()
    with pytest.raises(ValueError, match="without groups"):
        LowRank().factorise(network, ["3"])
    with pytest.raises(ValueError, match=r"'0'.*of 3 inputs"):
        LowRank().factorise(network, ["0"], {"0": Gram(3).add(torch.eye(3))})
    with pytest.raises(ValueError, match="spatial reading"):
        LowRank(Truncation(reading="spatial")).factorise(network, ["0"], {"0": Gram(18).add(torch.eye(18))})
    for wrong in ({"energy": 0}, {"rank": 0}, {"reading": "rows"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Truncation(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every"):
        TrainedRankPruning(every=0)
