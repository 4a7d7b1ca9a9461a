"""Rates fall towards the first layers, and only what should decay decays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.vit.models import FAMILIES, random_model
from vit.optimisers import adamw, depths


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_grows_from_the_pixels_to_the_head(family: str) -> None:
    found = depths(random_model(family))
    in_order = list(found.values())
    assert in_order == sorted(in_order) and set(in_order) == set(range(7 if family == "swin" else 5))


def test_a_vit_has_embeddings_layers_and_a_head() -> None:
    found = depths(random_model("vit"))
    assert found["vit.embeddings.cls_token"] == 0
    assert found["vit.layers.0.attention.q_proj.weight"] == 1
    assert found["vit.layers.2.mlp.fc2.bias"] == 3
    assert found["vit.layernorm.weight"] == found["classifier.weight"] == 4
    assert set(depths(nn.Linear(2, 2)).values()) == {0}


def test_rates_and_decay_by_parameter() -> None:
    model = random_model("vit")
    optimizer = adamw(model, 1.0, weight_decay=0.1, layer_decay=0.5)["optimizer"]
    of = settings_by_name(model, optimizer)
    assert of["classifier.weight"] == (1.0, 0.1) and of["classifier.bias"] == (1.0, 0.0)
    assert of["vit.layers.2.mlp.fc1.weight"] == (0.5, 0.1)
    assert of["vit.layers.0.layernorm_before.weight"] == (0.125, 0.0)
    assert of["vit.embeddings.patch_embeddings.projection.weight"] == (0.0625, 0.1)
    assert of["vit.embeddings.cls_token"] == of["vit.embeddings.position_embeddings"] == (0.0625, 0.0)
    plain = settings_by_name(model, adamw(model, 1.0)["optimizer"])
    assert {rate for rate, _ in plain.values()} == {1.0} and len(plain) == len(of)


def test_only_what_requires_gradients_trains() -> None:
    model = random_model("vit")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("classifier" in name)
    beside = [nn.Parameter(torch.zeros(2, 2))]
    optimizer = adamw(model, 0.1, beside=beside)["optimizer"]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    with pytest.raises(ValueError, match="nothing requires gradients"):
        adamw(model.requires_grad_(False), 0.1)


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"layer_decay": 0.0}, {"layer_decay": 1.1}, {"weight_decay": -1.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="layer_decay in"):
        adamw(nn.Linear(2, 2), **({"rate": 0.1} | wrong))


def settings_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    groups: dict[int, Any] = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    return {name: (groups[id(one)]["lr"], groups[id(one)]["weight_decay"]) for name, one in model.named_parameters()}
