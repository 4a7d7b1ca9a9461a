"""What a Network refuses, and how its masks behave where weights are read in unusual ways."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from secateur.surgery import Block, Count, Network, trace
from secateur.surgery.cost import count_macs, measure_latency
from secateur.surgery.reorder import reordered
from secateur.units import Member, UnitGroup
from tests.contracts import assert_same
from tests.secateur.surgery import networks
from tests.secateur.surgery.networks import pixels, seeded, tokens


def perceptron() -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2)))  # type: ignore[arg-type, return-value]


def hidden(*members: Member, size: int = 6, name: str = "hidden") -> UnitGroup:
    return UnitGroup(name, size, members or (Member("0.weight"), Member("0.bias"), Member("2.weight", 1)))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (hidden(size=0), "'hidden' has no units"),
        (hidden(Member("1.weight")), "no parameter or buffer '1.weight'"),
        (hidden(Member("0.weight", 2)), "has no dimension 2"),
        (hidden(Member("2.weight", 1), size=7), "has 6 rows"),
        (hidden(Member("2.weight", 1, torch.zeros(6, 2, dtype=torch.int64))), "row 0 of '2.weight' .* belongs to two"),
        (hidden(Member("2.weight", 1, torch.zeros(6, 2))), "must be int64"),
        (hidden(Member("0.weight"), Member("0.bias")), "reads its units"),
    ],
)
def test_unit_maps_that_do_not_fit_are_refused(group: UnitGroup, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(perceptron(), (group,))


def test_groups_blocks_and_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="belongs to two"):
        Network(perceptron(), (hidden(), hidden(name="again")))
    with pytest.raises(ValueError, match="1 units but 2 blocks"):
        Network(perceptron(), (UnitGroup("depth", 1, ()),), blocks={"depth": (Block("0"), Block("2"))})
    with pytest.raises(ValueError, match="no module '7'"):
        Network(perceptron(), (UnitGroup("depth", 1, ()),), blocks={"depth": (Block("7"),)})
    with pytest.raises(ValueError, match="integer attribute"):
        Network(perceptron(), (hidden(),), counts=(Count("0", "heads", "hidden"),))
    tied = perceptron()
    tied.append(nn.Linear(6, 2))
    tied[3].weight = tied[2].weight
    with pytest.raises(ValueError, match=r"'2.weight' is the same tensor as '3.weight'"):
        Network(tied, (hidden(),))
    quantised = perceptron()
    quantised[2].weight = nn.Parameter(torch.zeros(2, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'2.weight' is quantised"):
        Network(quantised, (hidden(),))


def test_masks_and_keeps_that_do_not_fit_are_refused() -> None:
    network = Network(perceptron(), (hidden(),))
    with pytest.raises(ValueError, match="'hidden' the shape"), network.masked({"hidden": torch.ones(5)}):
        pass
    with pytest.raises(ValueError, match="leaves 0 units of group 'hidden', which needs 1"):
        network.cut({"hidden": torch.zeros(6, dtype=torch.bool)})
    with (
        pytest.raises(ValueError, match="mask is in force"),
        network.masked({"hidden": torch.ones(6)}),
    ):
        network.cut({"hidden": torch.ones(6, dtype=torch.bool)})


def test_masks_multiply_when_nested_and_go_with_their_contexts() -> None:
    network = Network(perceptron(), (hidden(),))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    first, second = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    before = network(x)
    with network.masked({"hidden": first * second}):
        product = network(x)
    with network.masked({"hidden": first}):
        with network.masked({"hidden": second}):
            torch.testing.assert_close(network(x), product)
        assert list(network.module.state_dict()) == list(perceptron().state_dict())
    with pytest.raises(RuntimeError), network.masked({"hidden": first}):
        network(x[:, :3])
    assert_same(before, network(x))
    assert type(network.module[0]) is nn.Linear


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x, use_reentrant=False)


def test_masks_reach_through_gradient_checkpointing() -> None:
    group = hidden(Member("layers.0.weight"), Member("layers.0.bias"), Member("layers.2.weight", 1))
    gradients = []
    for module in (Checkpointed(), nn.ModuleDict({"layers": perceptron()})):
        network = Network(module, (group,))
        mask = torch.full((6,), 0.5, requires_grad=True)
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        with network.masked({"hidden": mask}):
            output = module(x) if isinstance(module, Checkpointed) else module["layers"](x)
            output.square().sum().backward()
        gradients.append((mask.grad, [parameter.grad for parameter in module.parameters()]))
    assert_same(gradients[0], gradients[1])


def test_recurrent_layers_return_to_their_own_weights() -> None:
    network = trace(seeded(networks.Recurrent), tokens())
    before = network(tokens())
    with network.masked({group.name: torch.zeros(group.size) for group in network.groups()}):
        assert not torch.equal(network(tokens()), before)
    assert_same(before, network(tokens()))
    network(tokens()).sum().backward()
    assert network.module.lstm.weight_hh_l0.grad is not None


def test_masked_layers_train_through_the_transformers_fast_path() -> None:
    """Without gradients torch runs its encoder layers as one operation, which has to see the masks too."""
    network = trace(seeded(networks.Transformer), tokens())
    masks = {
        group.name: torch.rand(group.size, generator=torch.Generator().manual_seed(0)) for group in network.groups()
    }
    with network.masked(masks):
        slow = network(tokens())
        with torch.no_grad():
            fast = network(tokens())
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(slow, network(tokens()), atol=1e-3)


def test_multiply_adds_are_those_of_torchs_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for kind, inputs in ((networks.Residual, pixels()), (networks.Mobile, pixels()), (networks.Decoder, pixels())):
        module = seeded(kind)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            module(inputs)
        assert count_macs(module, inputs) == counter.get_total_flops() // 2
    attention = seeded(networks.Transformer)
    weights = sum(p.numel() for name, p in attention.encoder.named_parameters() if p.dim() == 2)
    assert count_macs(attention, tokens()) == 10 * weights + 2 * 2 * 2 * 5 * 5 * 12 + 2 * 12 * 4


def test_other_costs_of_a_group_go_along() -> None:
    group = replace(hidden(), cost={"ms": torch.arange(6.0), "params": torch.zeros(6)})
    network = Network(perceptron(), (group,))
    assert network.groups()[0].cost["params"].tolist() == [4 + 1 + 2] * 6
    smaller = network.cut({"hidden": torch.arange(6) > 2})
    assert smaller.groups()[0].cost["ms"].tolist() == [3, 4, 5]
    turned = reordered(smaller, {"hidden": torch.tensor([2, 1, 0])})
    assert turned.groups()[0].cost["ms"].tolist() == [5, 4, 3]


def test_latency_is_measured_in_evaluation_mode() -> None:
    module = seeded(networks.Dense).train()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    assert measure_latency(module, pixels(), repeats=1, threads=1).median_ms > 0
    assert_same(before, dict(module.named_buffers()))
    assert module.training
