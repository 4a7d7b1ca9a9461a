"""Units that nothing reads go without a change, and so does what only they read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.surgery import Network, trace
from secateur.surgery.cost import count_params
from secateur.surgery.dead import cut_dead, find_read
from secateur.surgery.layers import named_tensors
from secateur.surgery.network import reads_units, rows_of
from tests.contracts import assert_same
from tests.secateur.surgery import networks
from tests.secateur.surgery.networks import pixels, seeded, tokens
from tests.secateur.surgery.test_trace import half

KINDS = [
    (networks.Residual, pixels()),
    (networks.Dense, pixels()),
    (networks.Transformer, tokens()),
    (networks.Recurrent, tokens()),
]


def emptied(network: Network, keep: dict[str, Tensor]) -> None:
    """Zeros over what reads the units that go."""
    tensors = named_tensors(network.module)
    for group in network.groups():
        for member in group.members:
            if reads_units(network.module, member):
                rows = rows_of(member, group.size)[~keep[group.name]].flatten()
                with torch.no_grad():
                    tensors[member.param].index_fill_(member.dim, rows, 0)


@pytest.mark.parametrize(("kind", "inputs"), KINDS)
def test_what_nothing_reads_is_cut_and_the_outputs_stay(kind: type[nn.Module], inputs: Tensor) -> None:
    network = trace(seeded(kind), inputs)
    assert cut_dead(network) is network, "with every unit alive nothing changes"
    keep = half(network)
    emptied(network, keep)
    dense = network(inputs)
    assert_same(find_read(network), keep)
    small = cut_dead(network)
    torch.testing.assert_close(small(inputs), dense, rtol=1e-4, atol=1e-5)
    assert count_params(small.module) == count_params(network.cut(keep).module) < count_params(network.module)
    assert cut_dead(small) is small, "once is enough"


def test_what_only_dead_units_read_is_dead() -> None:
    module = nn.Sequential(nn.Linear(3, 6), nn.Sigmoid(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 2)).eval()
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        module[2].weight[1:, 4] = 0  # type: ignore[operator, index]
        module[4].weight[:, 0] = 0  # type: ignore[operator, index]
    network = trace(module, inputs)
    assert [int(read.sum()) for read in find_read(network).values()] == [6, 4]
    small = cut_dead(network)
    assert [group.size for group in small.groups()] == [5, 4]
    torch.testing.assert_close(small(inputs), network(inputs))


def test_floors_hold_where_all_is_dead() -> None:
    network = trace(seeded(networks.Residual), pixels())
    emptied(network, {group.name: torch.zeros(group.size, dtype=torch.bool) for group in network.groups()})
    assert all(int(read.sum()) == 1 for read in find_read(network).values())
    torch.testing.assert_close(cut_dead(network)(pixels()), network(pixels()))
