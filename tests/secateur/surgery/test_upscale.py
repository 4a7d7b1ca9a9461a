"""Each layer reads its own: masked outputs, slices instead of copies, and files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation import Budget, allocate_per_group
from secateur.importance.magnitude import Magnitude
from secateur.surgery import trace
from secateur.surgery.consecutive import consecutive_order
from secateur.surgery.cost import count_params
from secateur.surgery.manifest import load, save
from secateur.surgery.selecting import count_gathers
from secateur.surgery.upscale import Unconstrained
from secateur.units import Keep
from tests.contracts import (
    assert_deterministic,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_same,
)
from tests.secateur.surgery import networks
from tests.secateur.surgery.networks import pixels, seeded, tokens
from tests.secateur.surgery.test_trace import half

KINDS = [
    (networks.Residual, pixels(), ("a2",)),
    (networks.Dense, pixels(), ()),
    (networks.Decoder, pixels(), ()),
    (networks.Mobile, pixels(), ("narrow",)),
    (networks.Mixer, tokens(), ("down.1",)),
    (networks.Recurrent, tokens(), ()),
    (networks.Transformer, tokens(), ()),
]
every = pytest.mark.parametrize(("kind", "inputs", "branches"), KINDS, ids=[kind.__name__ for kind, *_ in KINDS])


def target(kind: type[nn.Module], inputs: Tensor, branches: tuple[str, ...]) -> Unconstrained:
    return Unconstrained(trace(seeded(kind), inputs), branches)


def runner(inputs: Tensor) -> Callable[[Any], Tensor]:
    def run(of: Any) -> Tensor:
        with torch.no_grad():
            return of(inputs)

    return run


@every
def test_the_cut_network_does_what_the_masked_one_does(
    kind: type[nn.Module], inputs: Tensor, branches: tuple[str, ...], tmp_path: Path
) -> None:
    run = runner(inputs)
    whole = target(kind, inputs, branches)
    assert_mask_of_ones_changes_nothing(whole, run)
    for seed in range(4):
        keep = half(whole, seed)  # type: ignore[arg-type]
        assert_mask_equals_cut(whole, keep, run, rtol=1e-4, atol=1e-5)
    cut = assert_deterministic(lambda: dict(whole.cut(keep).module.state_dict()))
    small = whole.cut(keep)
    partial = sum(not bool(keep[name].all()) for name in keep if " reads " in name)
    assert count_gathers(small.module) <= partial
    save(small, tmp_path, dense=whole.network.module)
    again = load(tmp_path, lambda: kind().eval())
    assert_same(dict(again.module.state_dict()), cut)
    assert_same(run(again), run(small))


@every
def test_a_full_keep_changes_nothing(kind: type[nn.Module], inputs: Tensor, branches: tuple[str, ...]) -> None:
    whole = target(kind, inputs, branches)
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in whole.groups()}
    assert_same(dict(whole.cut(keep).module.state_dict()), dict(whole.network.module.state_dict()))


class Fan(nn.Module):
    """One convolution that four others read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.readers = nn.ModuleList(nn.Conv2d(12, 4, 1, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).sigmoid()
        return torch.stack([reader(x) for reader in self.readers]).sum(0)


def fan(*reads: list[int]) -> tuple[Unconstrained, Keep]:
    whole = Unconstrained(trace(seeded(Fan), pixels(), ignored=["readers"]))
    keep = {name: torch.zeros(12, dtype=torch.bool) for name in (f"readers.{i} reads stem" for i in range(4))}
    for index, units in enumerate(reads):
        keep[f"readers.{index} reads stem"][units] = True
    return whole, keep


def test_chains_need_no_copies_and_weights_are_the_kept_rows() -> None:
    whole, keep = fan([11, 3, 7], [7, 0, 5, 9], [9, 5, 1], [11, 3, 7, 0, 5, 9, 1])
    small = whole.cut(keep)
    assert count_gathers(small.module) == 0
    kept = sum(4 * int(mask.sum()) for mask in keep.values())
    assert count_params(small.module) == 7 * (3 + 1) + kept, "what nobody reads is gone, and each layer has its own"
    run = runner(pixels())
    assert_mask_equals_cut(whole, keep, run)
    exported = torch.export.export(small.module, (pixels(),)).module()
    torch.testing.assert_close(exported(pixels()), run(small))


def test_what_is_in_no_order_a_slice_is_gathered_by_one() -> None:
    whole, keep = fan([0, 1], [1, 2], [0, 2], [0, 1, 2])
    small = whole.cut(keep)
    assert count_gathers(small.module) == 1
    run = runner(pixels())
    assert_mask_equals_cut(whole, keep, run)


def test_masks_that_agree_cut_as_groups_do() -> None:
    network = trace(seeded(Fan), pixels(), ignored=["readers"])
    units = half(network)
    whole = Unconstrained(network)
    small = whole.cut({group.name: units["stem"] for group in whole.groups()})
    assert_same(dict(small.module.state_dict()), dict(network.cut(units).module.state_dict()))
    assert count_gathers(small.module) == 0


def test_criteria_and_allocators_work_on_what_layers_read() -> None:
    whole = target(*KINDS[0])
    groups = whole.groups()
    keep = allocate_per_group(Magnitude().score(whole), groups, Budget(share=0.5, cost="params"))
    small = whole.cut(keep)
    assert count_params(small.module) < 0.6 * count_params(whole.network.module)
    run = runner(pixels())
    assert_mask_equals_cut(whole, keep, run, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_orders_are_found_wherever_there_is_one(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    sets = [frozenset(torch.nonzero(torch.rand(6, generator=source) < 0.5)[:, 0].tolist()) for _ in range(2 + seed % 4)]

    def holds(order: tuple[int, ...] | list[int]) -> bool:
        places = [sorted(order.index(number) for number in each) for each in sets if each]
        return all(place[-1] - place[0] + 1 == len(place) for place in places)

    found = consecutive_order(sets, 6)
    assert (found is not None) == any(map(holds, permutations(range(6))))
    assert found is None or (sorted(found) == list(range(6)) and holds(found))


def test_what_cannot_be_is_refused() -> None:
    network = trace(seeded(networks.Residual), pixels())
    with pytest.raises(ValueError, match="branch 'head' must end in"):
        Unconstrained(network, ["head"])
    whole = Unconstrained(network)
    name = whole.groups()[0].name
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in whole.groups()}
    with pytest.raises(ValueError, match="reads one unit at least"):
        whole.cut(keep | {name: torch.zeros_like(keep[name])})
