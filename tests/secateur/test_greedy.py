"""Greedy stages on a small transformer: BlockPruner's order, the least of all candidates, exact budgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.greedy import Stage, prune_greedily
from secateur.surgery import Network
from secateur.surgery.attention import block_group, feed_forward_group, multihead_attention_group
from secateur.surgery.cost import count_params
from secateur.units import UnitGroup
from tests.contracts import assert_deterministic, assert_mask_equals_cut, assert_same
from tests.secateur.surgery.networks import seeded, tokens

INPUTS = tokens(6)


class Layer(nn.Module):
    """Attention and a feed-forward block, each added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.feed = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.feed(x)


class Stack(nn.Sequential):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__(Layer(), Layer())


def network() -> Network:
    """Two layers, whose feed-forward networks are blocks, and whose heads and channels are units."""
    module = seeded(Stack)
    groups, blocks, counts = [], {}, []
    for layer in "01":
        heads, counted = multihead_attention_group(module, f"{layer}.attention")
        channels = feed_forward_group(module, f"{layer}.channels", up=f"{layer}.feed.1", down=f"{layer}.feed.3")
        block, entry = block_group(module, f"{layer}.block", f"{layer}.feed")
        groups += [heads, channels, block]
        counts += counted
        blocks |= entry
    return Network(module, groups, INPUTS, blocks=blocks, counts=counts)


def is_block(group: UnitGroup) -> bool:
    return group.name.endswith(".block")


def is_channel(group: UnitGroup) -> bool:
    return group.name.endswith(".channels")


def is_head(group: UnitGroup) -> bool:
    return group.name.endswith(".attention")


class Change:
    """The mean squared change of the output; remembers what it measured."""

    def __init__(self, target: Network) -> None:
        with torch.no_grad():
            self.dense: Tensor = target(INPUTS)
        self.seen: list[float] = []

    def __call__(self, target: Any) -> float:
        assert not torch.is_grad_enabled()
        self.seen.append(float((target(INPUTS) - self.dense).square().mean()))
        return self.seen[-1]


def cost_of(target: Network, belongs: Any) -> float:
    return sum(float(group.cost["params"].sum()) for group in target.groups() if belongs(group))


@pytest.fixture(scope="module")
def pruned() -> tuple[Network, Network, list[Any]]:
    target = network()
    block = cost_of(target, is_block) / 2
    stages = [Stage(is_block, 1), Stage(is_channel, block + 100, chunk=3), Stage(is_head, block + 300)]
    small, steps = prune_greedily(target, stages, Change(target))
    return target, small, steps


def test_depth_goes_before_width_and_each_stage_ends_at_its_share(pruned: Any) -> None:
    target, small, steps = pruned
    assert [step.stage for step in steps] == sorted(step.stage for step in steps) and {s.stage for s in steps} == {
        0,
        1,
        2,
    }
    block = cost_of(target, is_block) / 2
    spent = {"block": 0.0, "channel": 0.0, "head": 0.0}
    for step in steps:
        kind = ("block", "channel", "head")[step.stage]
        group = next(group for group in target.groups() if group.name == step.group)
        spent[kind] += float(group.cost["params"][step.units].sum())
    assert spent["block"] == block
    assert 100 <= spent["channel"] < 100 + 12 + 12 + 1
    head = max(float(group.cost["params"].max()) for group in target.groups() if is_head(group))
    assert 300 <= spent["channel"] + spent["head"] < 300 + head
    assert count_params(small.module) < count_params(target.module)


def test_nothing_of_a_removed_block_is_a_candidate_later(pruned: Any) -> None:
    _, small, steps = pruned
    gone = steps[0].group.removesuffix("block")
    assert not list(small.module.get_submodule(f"{gone}feed").parameters())
    assert not any(step.group == f"{gone}channels" for step in steps)


def test_stages_that_remove_nothing_leave_the_order_of_blockpruner() -> None:
    target = network()
    whole = cost_of(target, is_block)
    alone = prune_greedily(target, [Stage(is_block, whole)], Change(target))[1]
    both = prune_greedily(target, [Stage(is_block, whole), Stage(is_channel, whole)], Change(target))[1]
    assert [step.group for step in alone] == [step.group for step in both] and len(alone) == 2
    singles = {group.name: Change(target) for group in target.groups() if is_block(group)}
    first = min(singles, key=lambda name: _without(target, name, singles[name]))
    assert alone[0].group == first


def _without(target: Network, name: str, measure: Change) -> float:
    masks = {group.name: torch.ones(group.size) for group in target.groups()}
    with torch.no_grad(), target.masked(masks | {name: torch.zeros(1)}):
        return measure(target)


def test_each_step_takes_the_least_of_what_it_measured() -> None:
    target = network()
    change = Change(target)
    _, steps = prune_greedily(target, [Stage(is_channel, 10, "units", chunk=2)], change)
    assert len(change.seen) == 2 * len(steps), "one run a candidate"
    assert [step.measured for step in steps] == [
        min(pair) for pair in zip(change.seen[::2], change.seen[1::2], strict=True)
    ]
    assert sum(len(step.units) for step in steps) == 10


def test_a_block_that_does_nothing_goes_first() -> None:
    target = network()
    with torch.no_grad():
        for parameter in target.module.get_submodule("1.feed.3").parameters():
            parameter.zero_()
    _, (step,) = prune_greedily(target, [Stage(is_block, 1)], Change(target))
    assert step.group == "1.block" and step.measured == 0


def test_contracts() -> None:
    target = network()
    before = {name: value.clone() for name, value in target.module.state_dict().items()}
    same, none = prune_greedily(target, [Stage(is_head, 0)], Change(target))
    assert same is target and not none
    stages = [Stage(is_channel, 7, "units"), Stage(is_head, 9, "units")]
    _, steps = prune_greedily(target, stages, Change(target))
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}
    for step in steps:
        keep[step.group][step.units] = False
    assert [int((~keep[group.name]).sum()) for group in target.groups() if is_head(group)] == [1, 1]

    def run(each: Any) -> Tensor:
        with torch.no_grad():
            return each(INPUTS)

    assert_mask_equals_cut(target, keep, run)
    assert_same(run(prune_greedily(target, stages, Change(target))[0]), run(target.cut(keep)))
    assert_deterministic(lambda: [(s.group, s.units) for s in prune_greedily(target, stages, Change(target))[1]])
    assert_same(before, dict(target.module.state_dict()))


def test_bad_stages_are_refused() -> None:
    target = network()
    with pytest.raises(ValueError, match="stage 0 has no groups"):
        prune_greedily(target, [Stage(lambda _: False, 1)], Change(target))
    with pytest.raises(ValueError, match=r"stage 0 has to remove 1 more, but its floors .*attention"):
        prune_greedily(target, [Stage(is_head, 5, "units")], Change(target))
    with pytest.raises(ValueError, match="chunk >= 1"):
        Stage(is_head, 1, chunk=0)
