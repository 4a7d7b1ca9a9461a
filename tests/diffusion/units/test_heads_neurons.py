from __future__ import annotations

import pytest
import torch

from diffusion.units import prunable
from tests.contracts import (
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
)
from tests.diffusion.models import FAMILIES, inputs, random_model, run

TRANSFORMERS = [family for family in FAMILIES if family != "unet2d"]


def half(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in network.groups():
        mask = torch.rand(group.size, generator=generator) > 0.5
        mask[: group.min_keep] = True
        keep[group.name] = mask
    return keep


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_cut_equals_masked(family):
    network = prunable(random_model(family), ("heads", "neurons"), inputs(family))
    assert_full_keep_changes_nothing(network)
    assert_mask_of_ones_changes_nothing(network, run(family))
    assert_mask_equals_cut(network, half(network), run(family), rtol=1e-5, atol=1e-5)
