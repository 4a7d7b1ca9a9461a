"""The PQ index has the properties of its paper; plasticity is what was lost and what came back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.harness.reports import Plasticity, plasticity_over, pq_index, pq_report, pruning_plasticity
from tests.contracts import assert_same
from tests.secateur.networks import errors, perceptron
from tests.secateur.toys import generator

NORMS = [(0.5, 1.0), (1.0, 2.0), (0.5, 2.0)]


def vector(count: int = 40) -> Tensor:
    return torch.randn(count, generator=generator(3), dtype=torch.float64)


@pytest.mark.parametrize(("p", "q"), NORMS)
def test_even_entries_are_least_sparse_and_a_single_one_most(p: float, q: float) -> None:
    assert pq_index(-3 * torch.ones(20), p, q).index == pytest.approx(0, abs=1e-12)
    single = pq_index(torch.eye(20)[4], p, q)
    assert single.index == pytest.approx(1 - 20 ** (1 / q - 1 / p))
    assert 0 < pq_index(vector(), p, q).index < 1 - 40 ** (1 / q - 1 / p)
    assert pq_index(torch.zeros(5), p, q).index == 0


@pytest.mark.parametrize(("p", "q"), NORMS)
def test_scale_and_copies_change_nothing_and_a_constant_lowers_it(p: float, q: float) -> None:
    w = vector()
    index = pq_index(w, p, q).index
    for same in (1e-30 * w, 1e30 * w, w.repeat(3), w.view(5, 8), [w[:7], w[7:]], -w.flip(0)):
        assert pq_index(same, p, q).index == pytest.approx(index)
    assert pq_index(w.abs() + 1, p, q).index < index


@pytest.mark.parametrize(("p", "q"), NORMS)
def test_what_has_to_stay_is_no_more_than_what_there_is(p: float, q: float) -> None:
    for support in (1, 7, 40):
        w = vector()
        w[support:] = 0
        found = pq_index(w, p, q)
        assert 0 < found.retained <= support * (1 + 1e-9)
        survivors = pq_index(w, p, q, nonzero=True)
        assert survivors.entries == support
        assert survivors.index == pytest.approx(pq_index(w[:support], p, q).index)
    even = torch.cat([torch.ones(7), torch.zeros(33)])
    assert pq_index(even, p, q).retained == pytest.approx(7)


def test_the_index_is_the_formula_of_norms() -> None:
    w = vector()
    expected = 1 - 40 ** (1 / 2 - 1) * float(w.norm(p=1) / w.norm(p=2))
    assert pq_index(w, 1.0, 2.0).index == pytest.approx(expected)


def test_a_network_is_reported_as_a_whole_and_by_parameter() -> None:
    network = perceptron(4, 8, 2)
    report = pq_report(network)
    assert list(report.by_parameter) == ["0.weight", "2.weight"]
    assert report.whole.entries == 4 * 8 + 8 * 2
    assert report.by_parameter["2.weight"] == pq_index(network[2].weight)
    both = torch.cat([network[0].weight.flatten(), network[2].weight.flatten()])
    assert report.whole.index == pytest.approx(pq_index(both).index)
    assert pq_report({"w": torch.eye(3)}).by_parameter["w"].entries == 9


def test_what_has_no_index_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'broken': an entry is not finite"):
        pq_report({"fine": torch.ones(2, 2), "broken": torch.tensor([[1.0, float("nan")]])})
    with pytest.raises(ValueError, match="not finite"):
        pq_index(torch.tensor([1.0, float("inf")]))
    with pytest.raises(ValueError, match="no entries"):
        pq_index(torch.zeros(0))
    with pytest.raises(ValueError, match="0 < p < q"):
        pq_index(vector(), 2.0, 1.0)
    with pytest.raises(ValueError, match="no parameter"):
        pq_report(nn.ReLU())


def test_plasticity_is_what_comes_back_after_pruning() -> None:
    network = perceptron(4, 8, 2, seed=9)
    data = errors(network, 4, samples=32)
    before = [parameter.detach().clone() for parameter in network.parameters()]

    def score(module: nn.Module) -> float:
        assert not module.training and not torch.is_grad_enabled()
        return -float(torch.stack(list(data.losses(module))).mean())

    def prune(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            module[2].weight[:, :4] = 0  # type: ignore[index,operator]
        return module

    def train(module: nn.Module) -> None:
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            torch.stack(list(data.losses(module))).mean().backward()
            optimizer.step()

    found = pruning_plasticity(network, prune, train, score)
    assert found.lost > 0 and found.regained > 0
    assert found.plasticity == pytest.approx(found.regained - found.lost)
    assert_same(before, [parameter.detach() for parameter in network.parameters()])

    idle = pruning_plasticity(network, lambda module: module, lambda module: None, score)
    assert idle == Plasticity(idle.before, idle.before, idle.before) and idle.plasticity == 0
    over = plasticity_over(((step, network) for step in (0, 10)), prune, train, score)
    assert over == {0: found, 10: found}
