"""Reordering units: neutral to outputs, and the permutation contract of scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.importance.magnitude import Magnitude
from secateur.surgery import Network, trace
from secateur.surgery.manifest import load, save
from secateur.surgery.reorder import reordered
from tests.contracts import assert_permutes, assert_same
from tests.secateur.surgery import networks
from tests.secateur.surgery.networks import pixels, seeded
from tests.secateur.surgery.test_trace import every_kind, half


@every_kind
def test_order_is_neutral_and_scores_move_along(kind: type[nn.Module], inputs: Tensor) -> None:
    network = trace(seeded(kind), inputs)
    generator = torch.Generator().manual_seed(0)
    orders = {group.name: torch.randperm(group.size, generator=generator) for group in network.groups()}
    with torch.no_grad():
        torch.testing.assert_close(reordered(network, orders)(inputs), network(inputs), rtol=1e-4, atol=1e-5)
    for group in network.groups():
        assert_permutes(
            Magnitude().score, network, lambda t, order, name=group.name: reordered(t, {name: order}), group.name, 1e-5
        )


def test_kept_units_side_by_side_are_cut_as_one_slice(tmp_path: Path) -> None:
    network = trace(seeded(networks.Residual), pixels())
    keep = half(network)
    orders = {name: torch.cat([mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]]) for name, mask in keep.items()}
    front = {name: torch.arange(len(mask)) < int(mask.sum()) for name, mask in keep.items()}
    sliced = reordered(network, orders).cut(front)
    assert_same(dict(network.cut(keep).module.state_dict()), dict(sliced.module.state_dict()))
    backwards = reordered(network, {"b1.0": torch.arange(9, -1, -1)}).cut(keep)
    save(backwards, tmp_path)
    with torch.no_grad():
        assert_same(backwards(pixels()), load(tmp_path, lambda: networks.Residual().eval())(pixels()))


def test_orders_that_are_none_are_refused() -> None:
    network = trace(seeded(networks.Residual), pixels())
    with pytest.raises(ValueError, match="permutation of 10 units"):
        reordered(network, {"b1.0": torch.zeros(10, dtype=torch.int64)})
    with pytest.raises(ValueError, match="no group 'x'"):
        reordered(network, {"x": torch.arange(3)})
    assert isinstance(reordered(network, {}), Network)
