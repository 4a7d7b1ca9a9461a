"""LPViT's curves, allocation and models against brute force, dense masks and magnitudes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation import Budget
from secateur.block_curves import removal_curve, removal_losses
from secateur.block_sparse import BlockSparseLinear
from secateur.blocks import BlockTaylor
from secateur.distortion import Curve
from secateur.importance import Magnitude, Taylor
from secateur.importance.objective import Supervised
from secateur.recovery.refit import ObsRefit
from secateur.solvers.gram import Gram
from secateur.solvers.obs import quadratic_loss
from secateur.training.seeding import seeded
from tests.contracts import assert_deterministic, assert_same
from vit.lpvit import BlockLayer, BlockTime, LPViT, input_width, measure_block_time
from vit.lpvit.calibrate import output_sensitivities


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron() -> nn.Sequential:
    with seeded(0, torch.device("cpu")):
        return nn.Sequential(nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 32)).eval()


def uneven_inputs(count: int = 3, samples: int = 200) -> list[Tensor]:
    """Batches whose features differ in size and go together."""
    mix = torch.randn(32, 32, generator=generator(7)) * torch.logspace(-1, 1, 32)
    return [torch.randn(samples, 32, generator=generator(seed)) @ mix for seed in range(count)]


def vision_transformer() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64, image_size=16, patch_size=4,
        num_labels=5,
    )  # fmt: skip
    with seeded(0, torch.device("cpu")):
        return ViTForImageClassification(config).eval()


def swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=5
    )
    with seeded(0, torch.device("cpu")):
        return SwinForImageClassification(config).eval()


def images() -> list[Tensor]:
    return [torch.randn(2, 3, 16, 16, generator=generator(seed)) for seed in range(2)]


def test_losses_are_the_layers_quadratic_after_every_block() -> None:
    weight = torch.randn(6, 8, generator=generator(), dtype=torch.float64)
    gram = Gram(8, dtype=torch.float64).add(torch.randn(40, 8, generator=generator(1), dtype=torch.float64))
    order = torch.randperm(8, generator=generator(2))
    losses = removal_losses(weight, gram, order, 3, 2)
    change = torch.zeros(2, 4, 3, 2, dtype=torch.float64)
    parts = weight.view(2, 3, 4, 2).transpose(1, 2)
    expected = [0.0]
    for block in order.tolist():
        change[block // 4, block % 4] = parts[block // 4, block % 4]
        expected.append(quadratic_loss(change.transpose(1, 2).reshape(6, 8), gram.mean))
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_losses_of_inputs_with_nothing_in_common_are_sums_of_scores() -> None:
    weight = torch.randn(6, 8, generator=generator())
    gram = Gram(8).add(torch.diag(torch.arange(1.0, 9.0)))
    scores = BlockTaylor(3, 2).score(weight, gram)
    exact = removal_curve(weight, gram, scores, 8)
    torch.testing.assert_close(exact.losses, BlockTaylor(3, 2).curve(scores, 8).losses, rtol=1e-5, atol=1e-6)
    assert float(exact.losses[0]) == pytest.approx(quadratic_loss(weight, gram.mean), rel=1e-5)


def test_wrong_orders_are_refused() -> None:
    gram = Gram(4).add(torch.ones(1, 4))
    with pytest.raises(ValueError, match="each of 4 blocks once"):
        removal_losses(torch.ones(4, 4), gram, torch.tensor([0, 1, 1, 2]), 2, 2)
    with pytest.raises(ValueError, match="of 8 inputs"):
        removal_losses(torch.ones(4, 8), gram, torch.arange(8), 2, 2)


def convex(seed: int, size: int) -> tuple[Tensor, Curve]:
    scores = torch.rand(size, generator=generator(seed), dtype=torch.float64)
    lost = scores.sort().values.cumsum(0).flip(0)
    return scores, Curve(torch.arange(size + 1), torch.cat([lost, lost.new_zeros(1)]))


@pytest.mark.parametrize("left", [3, 7, 12])
def test_counts_of_convex_curves_are_those_of_brute_force(left: int) -> None:
    sizes = {name: BlockLayer(name, 2, 12, 2, 2, 1.0) for name in "abc"}
    pairs = {name: convex(seed, 6) for seed, name in enumerate(sizes)}
    scores, curves = ({name: pair[index] for name, pair in pairs.items()} for index in (0, 1))
    counts = LPViT(2, 2, min_keep=0).counts(sizes, scores, curves, Budget(limit=left))  # type: ignore[arg-type]

    def loss(kept: tuple[int, ...]) -> float:
        return sum(float(curves[name].losses[count]) for name, count in zip(sizes, kept, strict=True))  # type: ignore[union-attr]

    best = min(loss(kept) for kept in product(range(7), repeat=3) if sum(kept) <= left)
    assert loss(tuple(counts.values())) == pytest.approx(best)
    assert sum(counts.values()) == left


def test_without_a_budget_lambda_decides_and_zero_keeps_all() -> None:
    model = perceptron()
    kept = []
    for weight in (0.0, 0.05, 0.5, 5.0):
        pruned = LPViT(16, 16, power_weight=weight, skip=()).prune(model, uneven_inputs(), None)
        kept.append(sum(layer.kept for layer in pruned.layers))
        assert all(layer.power_kept == layer.kept * input_width(layer.layer) for layer in pruned.layers)
        assert all(layer.power == layer.layer.blocks * input_width(layer.layer) for layer in pruned.layers)
    assert kept[0] == sum(layer.layer.blocks for layer in pruned.layers) and kept == sorted(kept, reverse=True)
    assert kept[3] < kept[1] < kept[0]
    whole = LPViT(16, 16, skip=()).prune(model, uneven_inputs(), None).module
    assert_same(dict(whole.state_dict()), dict(model.state_dict()))


def test_under_a_budget_of_blocks_lambda_moves_them_to_layers_of_little_power() -> None:
    spent = []
    for weight in (0.0, 1.0):
        pruned = LPViT(16, 16, power_weight=weight).prune(perceptron(), uneven_inputs(), Budget(share=0.5))
        assert sum(layer.kept for layer in pruned.layers) == 22
        spent.append(sum(layer.power_kept for layer in pruned.layers))
    assert spent[1] < spent[0]


@pytest.mark.parametrize("cost", ["units", "params", "macs", "power", "ms"])
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_budgets_are_exact(cost: str, share: float) -> None:
    method = LPViT(16, 16, times=lambda layer: BlockTime(1.0, layer.in_features / 1000, 0.0))
    pruned = method.prune(perceptron(), uneven_inputs(), Budget(share=share, cost=cost))
    price = {
        "units": lambda layer: 1.0,
        "params": lambda layer: 256.0,
        "macs": lambda layer: 256.0 * 200,
        "power": input_width,
        "ms": lambda layer: layer.in_features / 1000,
    }[cost]
    whole = sum(each.layer.blocks * price(each.layer) for each in pruned.layers)
    left = share * whole - sum(each.kept * price(each.layer) for each in pruned.layers)
    assert left >= -1e-6 * whole
    assert all(each.kept == each.layer.blocks or price(each.layer) > left - 1e-6 * whole for each in pruned.layers)
    assert all(int(pruned.keep[each.layer.name].sum()) == each.kept for each in pruned.layers)


def test_each_layer_loses_the_least_share() -> None:
    method = LPViT(16, 16, min_sparsity=0.25)
    pruned = method.prune(perceptron(), uneven_inputs(), Budget(share=1.0))
    assert [each.kept for each in pruned.layers] == [9, 18, 6]


def test_it_is_deterministic_and_leaves_the_model() -> None:
    model = perceptron()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_deterministic(lambda: LPViT(16, 16).prune(model, uneven_inputs(), Budget(share=0.4)).keep)
    assert_same(before, dict(model.state_dict()))


@pytest.mark.parametrize("score", [None, Taylor("elements")], ids=["second order", "w g"])
def test_it_beats_block_magnitude(score: Any) -> None:
    model, batches = perceptron(), uneven_inputs()
    held_out = uneven_inputs(5)[4]
    wanted = model(held_out).detach()
    objective = Supervised([(batch, model(batch).detach() + 0.1) for batch in batches], nn.functional.mse_loss)

    def error(method: LPViT, loss: Supervised | None = None) -> float:
        pruned = method.prune(model, batches, Budget(share=0.5), loss)
        assert sum(each.kept for each in pruned.layers) == 22
        return float((pruned.module(held_out) - wanted).detach().square().mean())

    ours = error(LPViT(16, 16, score), objective if score is not None else None)
    assert ours < error(LPViT(16, 16, Magnitude()))
    assert error(LPViT(16, 16, score, refit=ObsRefit()), objective if score is not None else None) < ours


def test_outputs_that_the_loss_does_not_mind_may_go() -> None:
    model = nn.Sequential(nn.Linear(32, 64, bias=False)).eval()
    care = torch.cat([torch.zeros(32), torch.full((32,), 2.0)])
    objective = Supervised([(batch, care) for batch in uneven_inputs()], lambda y, care: (y * care).sum() / len(y))
    minds = output_sensitivities(model, {"0": model[0]}, objective)["0"]  # type: ignore[dict-item]
    torch.testing.assert_close(minds, (care.double() / 200).square() * 200)
    with pytest.raises(ValueError, match=r"no gradient in the outputs of \['0'\]"):
        output_sensitivities(model, {"0": nn.Linear(2, 2)}, objective)
    pruned = LPViT(16, 16, skip=()).prune(model, uneven_inputs(), Budget(share=0.5), objective)
    assert pruned.keep["0"].tolist() == [[False] * 2] * 2 + [[True] * 2] * 2


@pytest.mark.parametrize("build", [vision_transformer, swin])
def test_vision_transformers_become_block_sparse(build: Any) -> None:
    model = build()
    pruned = LPViT(16, 16).prune(model, images(), Budget(share=0.5, cost="macs"))
    sparse = [each for each in pruned.module.modules() if isinstance(each, BlockSparseLinear)]
    assert sparse and len(pruned.layers) >= 12 and "classifier" not in pruned.keep
    pixels = images()[0]
    torch.testing.assert_close(pruned.module(pixels).logits, pruned.masked(pixels).logits, rtol=1e-5, atol=1e-5)
    assert float((pruned.masked(pixels).logits - model(pixels).logits).detach().abs().max()) > 1e-4


def test_wrong_names_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="whole blocks of 20 x 20"):
        LPViT(20, 20).prune(perceptron(), uneven_inputs(), None)
    with pytest.raises(ValueError, match="no linear layer that"):
        LPViT(16, 16, layers=("nothing",)).prune(perceptron(), uneven_inputs(), None)
    with pytest.raises(ValueError, match="a batch at least"):
        LPViT(16, 16).prune(perceptron(), [], None)
    with pytest.raises(ValueError, match="no cost 'ms'"):
        LPViT(16, 16).prune(perceptron(), uneven_inputs(), Budget(share=0.5, cost="ms"))
    with pytest.raises(ValueError, match="power_weight >= 0"):
        LPViT(power_weight=-1.0)
    partly = LPViT(32, 64).prune(perceptron(), uneven_inputs(), Budget(share=1.0))
    assert partly.left_out == ("0", "2") and list(partly.keep) == ["4"]


def test_times_of_a_layer_lie_on_a_line() -> None:
    layer = BlockLayer("a", 64, 64, 16, 16, 8.0)
    measured = measure_block_time(layer, repeats=2)
    assert measured.base_ms >= 0 and measured.per_block_ms >= 0 and measured.largest_miss >= 0
    with pytest.raises(ValueError, match="two counts"):
        measure_block_time(layer, shares=(0.5,))
