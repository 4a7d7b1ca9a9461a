"""Criteria on the channels that surgery finds in a network: scores, contracts, and what is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur.allocation import Budget, allocate
from secateur.importance import ActivationAttention, GraSP, Lamp, Magnitude, SynFlow, Taylor, Wanda
from secateur.regularizers import GroupDecay, GroupLasso, HalfSpace, Masked
from secateur.surgery import Network, trace
from tests.contracts import assert_deterministic, assert_exact_budget, assert_same, assert_scores_fit
from tests.secateur.networks import convolutional, errors

CRITERIA: list[Any] = [
    Magnitude(),
    Lamp(),
    Taylor("elements"),
    GraSP(),
    SynFlow((1, 2, 6, 6), share=0.5, rounds=3),
    Wanda(),
    ActivationAttention(),
]


def network() -> tuple[nn.Module, Network]:
    module = convolutional(groups=1)
    return module, trace(module, torch.zeros(1, 2, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
def test_channels_are_scored_and_cut(criterion: Any) -> None:
    module, target = network()
    data = errors(module, 2, 6, 6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scores = assert_deterministic(lambda: criterion.score(target, data))
    assert_scores_fit(scores, target.groups())
    assert_same(before, dict(module.state_dict()))
    keep = allocate(scores, target.groups(), Budget(share=0.5))
    assert_exact_budget(keep, target.groups(), Budget(share=0.5))
    assert target.cut(keep)(data.inputs).shape == (16, 3)


def test_penalties_and_optimisers_pass_over_buffers() -> None:
    module, target = network()
    keep = {group.name: torch.arange(group.size) > 0 for group in target.groups()}
    before = module[1].running_mean.clone()  # type: ignore[index]
    penalty = GroupDecay()(target.tensors(), target.groups())
    penalty = penalty + Masked(GroupLasso(), keep)(target.tensors(), target.groups())
    penalty.backward()
    optimizer = HalfSpace(target.tensors(), target.groups(), lr=1e-3, keep=keep)
    optimizer.step()
    optimizer.finish()
    assert_same(optimizer.alive(), keep)
    assert_same(before, module[1].running_mean)  # type: ignore[index]
