"""DIMAP's modules and scores, on Swin, ViT and torch's own encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation import Budget, allocate
from secateur.granularity import Block, Weights
from secateur.importance import Lamp
from tests.contracts import assert_deterministic, assert_exact_budget, assert_same, assert_scores_fit
from tests.vit.models import swin, vit
from vit.dimap import Dimap, linear_weights, module_scope
from vit.units import prunable


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return swin().eval()


def weights_of(model: nn.Module) -> Weights:
    return Weights(model, params=linear_weights(model), min_keep=0)


def by_definition(values: Tensor) -> Tensor:
    squares = values.flatten().double().square()
    return torch.stack([square / squares[squares >= square].sum() for square in squares]).float()


def test_layers_belong_to_the_papers_modules(model: nn.Module) -> None:
    scope, types = module_scope(model), module_scope(model, "network")
    block = "swin.encoder.layers.1.blocks.0"
    for part in ("q_proj", "k_proj", "v_proj"):
        assert scope(f"{block}.attention.{part}.weight") == f"{block}.attention: QKV"
    assert scope(f"{block}.attention.o_proj.weight") == f"{block}.attention: projection"
    assert scope(f"{block}.mlp.fc1.weight") == scope(f"{block}.mlp.fc2.weight") != scope("swin.encoder.layers.0.x")
    reduction = "swin.encoder.layers.0.downsample.reduction.weight"
    assert scope(reduction) == f"{reduction}: auxiliary" != scope("classifier.weight")
    names = {types(group.name) for group in weights_of(model).groups()}
    assert names == {"QKV", "projection", "MLP", "auxiliary"}


def test_scores_are_shares_of_the_module_and_keep_local_ranks(model: nn.Module) -> None:
    target = weights_of(model)
    scores = assert_deterministic(lambda: Dimap().score(target))
    assert_scores_fit(scores, target.groups())
    attention = "swin.encoder.layers.0.blocks.1.attention"
    merged = torch.cat([target.tensors()[f"{attention}.{part}_proj.weight"] for part in "qkv"])
    found = torch.cat([scores[f"{attention}.{part}_proj.weight"] for part in "qkv"])
    torch.testing.assert_close(found, by_definition(merged), rtol=1e-5, atol=0)
    assert float(found.max()) == 1.0
    for name, score in scores.items():
        assert torch.equal(score.argsort(stable=True), target.tensors()[name].abs().argsort(stable=True)), name


def test_a_module_of_one_layer_is_scored_as_lamp_does(model: nn.Module) -> None:
    target = weights_of(model)
    ours, lamp = Dimap().score(target), Lamp().score(target)
    single = [name for name in ours if "o_proj" in name or "reduction" in name or "classifier" in name]
    assert len(single) == 6
    for name in single:
        assert_same(ours[name], lamp[name])
    assert not torch.equal(ours["swin.encoder.layers.0.blocks.0.mlp.fc1.weight"], lamp["classifier.weight"])


@pytest.mark.parametrize("level", ["block", "network"])
def test_the_scale_of_a_module_does_not_matter(model: nn.Module, level: str) -> None:
    target = weights_of(model)
    scope = module_scope(model, level)  # type: ignore[arg-type]
    scales = {name: 4.0 ** (-index) for index, name in enumerate(sorted({scope(g.name) for g in target.groups()}))}
    scaled = {name: scales[scope(name)] * weight for name, weight in target.weights().items()}
    before = Dimap(level).score(target)  # type: ignore[arg-type]
    after = Lamp(scope).score(Weights({name: weight.detach() for name, weight in scaled.items()}))
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("share", [0.1, 0.475, 1.0])
def test_the_total_is_exact_over_linear_layers_alone(model: nn.Module, share: float) -> None:
    target = weights_of(model)
    assert not any("table" in group.name or "norm" in group.name for group in target.groups())
    total = sum(group.size for group in target.groups())
    keep = target.granularity.allocate(Dimap().score(target), target.groups(), Budget(share=share))
    assert sum(int(mask.sum()) for mask in keep.values()) == int(share * total * (1 + 1e-9))
    sparse = target.cut(keep).module
    assert sparse is not None
    zeros = sum(int((module.weight == 0).sum()) for module in sparse.modules() if isinstance(module, nn.Linear))
    assert zeros == total - int(share * total * (1 + 1e-9))


def test_heads_and_neurons_and_blocks_are_scored_by_the_same_rule(model: nn.Module) -> None:
    target = prunable(model)
    scores = Dimap().score(target)
    # Each group of heads or neurons is a module.
    assert_same(scores, Lamp().score(target))
    assert_same(Dimap("network").score(target)["swin.encoder.layers.0.blocks.0.mlp.neurons"].shape, (16,))
    keep = allocate(scores, target.groups(), Budget(share=0.5))
    assert_exact_budget(keep, target.groups(), Budget(share=0.5))
    target.cut(keep).module(torch.zeros(1, 3, 16, 16))
    blocks = Weights(model, Block(4, 4), lambda name, _: "q_proj.weight" in name)
    assert_scores_fit(Dimap().score(blocks), blocks.groups())


def test_other_layouts_have_modules_too() -> None:
    types = module_scope(vit(), "network")
    assert types("vit.layers.0.attention.q_proj.weight") == "QKV" and types("classifier.weight") == "auxiliary"
    with torch.device("meta"):
        encoder = nn.TransformerEncoderLayer(8, 2, 16)
    scope = module_scope(encoder, "network")
    assert [scope(name) for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight")] == [
        "QKV",
        "projection",
        "MLP",
    ]
    assert linear_weights(encoder)("self_attn.in_proj_weight", torch.zeros(2, 2))


def test_wrong_targets_and_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="without one"):
        Dimap().score(Weights({"w": torch.ones(2, 2)}))
    with pytest.raises(ValueError, match="level must be"):
        Dimap("layer")  # type: ignore[arg-type]
