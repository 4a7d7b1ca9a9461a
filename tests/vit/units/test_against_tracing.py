"""Where torch-pruning's graph is right (ViT, DeiT), it finds the same rows."""

from __future__ import annotations

import pytest
import torch

from secateur.surgery import trace
from secateur.surgery.network import rows_of
from secateur.units import UnitGroup
from tests.vit.models import inputs, random_model
from vit.units import prunable

FAMILIES = ["vit", "deit", "deit_teacher"]


def owned(group: UnitGroup) -> dict[tuple[str, int], list[list[int]]]:
    """(parameter, dimension) -> the rows of each unit."""
    return {(m.param, m.dim): rows_of(m, group.size).sort(dim=1).values.tolist() for m in group.members}


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_and_the_stream_own_what_tracing_finds(family: str) -> None:
    model = random_model(family)
    mine = [owned(group) for group in prunable(model, ("neurons", "embedding")).groups()]
    traced = [owned(group) for group in trace(model, inputs(family)).groups()]
    assert len(mine) == len(traced) == 4
    assert all(each in traced for each in mine)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_own_what_tracing_finds(family: str) -> None:
    model = random_model(family)
    traced = {group.name: group for group in trace(model, inputs(family), check=False).groups()}
    for group in prunable(model, ("heads",)).groups():
        channels = owned(traced[group.name.replace(".heads", ".q_proj")])
        for place, heads in owned(group).items():
            width = len(heads[0])
            together = torch.tensor(channels[place]).reshape(group.size, width).sort(dim=1).values
            assert together.tolist() == heads, place
