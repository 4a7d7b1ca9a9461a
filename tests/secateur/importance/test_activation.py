"""Activation criteria against activations that are computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.allocation import Budget
from secateur.granularity import NofM, Rows, Weights
from secateur.importance import ActivationAttention, Wanda, block_influence
from secateur.importance.activation import input_norms
from tests.contracts import assert_deterministic, assert_same, assert_scores_fit
from tests.secateur.networks import Errors, convolutional, errors, perceptron, skipped
from tests.secateur.toys import LossOf


def batches(module: nn.Module) -> Errors:
    return errors(module, 2, 6, 6) if isinstance(module[0], nn.Conv2d) else errors(module, 5)  # type: ignore[index]


def test_wanda_is_weights_times_input_norms() -> None:
    module = perceptron(5, 7, 3)
    data = batches(module)
    scores = Wanda().score(Weights(module), data)
    hidden = torch.tanh(module[0](data.inputs))
    for name, inputs, layer in [("0.weight", data.inputs, module[0]), ("2.weight", hidden, module[2])]:
        norms = inputs.square().mean(dim=0).sqrt()
        torch.testing.assert_close(scores[name].view(layer.weight.shape), (layer.weight.abs() * norms).detach())


def named(criterion: object) -> str:
    """A name for the test: a repr would hold the address of its function, which differs from process to process."""
    return type(criterion).__name__


@pytest.mark.parametrize(
    "layer",
    [
        skipped(nn.Conv2d, 4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64),
        skipped(nn.Conv2d, 4, 8, (2, 3), padding="same", dilation=2, dtype=torch.float64),
        skipped(nn.Conv2d, 4, 4, 1, groups=4, dtype=torch.float64),
    ],
    ids=repr,
)
def test_convolutions_are_matrices_over_their_patches(layer: nn.Conv2d) -> None:
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    data = errors(layer, 4, 7, 6)
    norms = input_norms(Weights(layer), data, {"weight": layer})["weight"]
    padding, inputs = layer.padding, data.inputs
    if padding == "same":
        inputs, padding = F.pad(inputs, [2, 2, 1, 1]), 0
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    means = patches.square().mean(dim=(0, 2)).sqrt().view(layer.groups, -1)
    expected = means.repeat_interleave(layer.out_channels // layer.groups, dim=0).view(layer.weight.shape)
    torch.testing.assert_close(norms, expected)


def test_one_dimensional_convolutions_count_too() -> None:
    layer = skipped(nn.Conv1d, 2, 3, 3, padding=1, dtype=torch.float64)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    data = errors(layer, 2, 9)
    norms = input_norms(Weights(layer), data, {"weight": layer})["weight"]
    torch.testing.assert_close(norms[0, :, 1], data.inputs.square().mean(dim=(0, 2)).sqrt())


@pytest.mark.parametrize("make", [lambda: perceptron(5, 7, 3), convolutional])
@pytest.mark.parametrize("criterion", [Wanda(), ActivationAttention(), ActivationAttention(2.0, torch.tanh)], ids=named)
def test_the_contracts_of_criteria(criterion: Any, make: Any) -> None:
    module = make()
    target, data = Weights(module, Rows()), batches(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scores = assert_deterministic(lambda: criterion.score(target, data))
    assert_scores_fit(scores, target.groups())
    assert_same(before, dict(module.state_dict()))
    assert not any(part._forward_hooks for part in module.modules())
    twice = Errors(data.inputs.repeat(2, *[1] * (data.inputs.ndim - 1)), data.outputs.repeat(2, 1), data.size)
    torch.testing.assert_close(criterion.score(target, twice), scores)


@pytest.mark.parametrize("criterion", [Wanda(), ActivationAttention()], ids=named)
def test_scores_permute_with_the_rows(criterion: Any) -> None:
    module, twin = perceptron(5, 7, 3), perceptron(5, 7, 3)
    order, data = torch.tensor([3, 1, 0, 6, 5, 2, 4]), batches(module)
    with torch.no_grad():
        twin[0].weight.copy_(module[0].weight[order])
        twin[0].bias.copy_(module[0].bias[order])
        twin[2].weight.copy_(module[2].weight[:, order])
    first, second = (criterion.score(Weights(m, Rows()), data)["0.weight"] for m in (module, twin))
    torch.testing.assert_close(second, first[order])


def test_wanda_compares_within_rows() -> None:
    module = perceptron(8, 8, 8)
    target = Weights(module, NofM(4, 8))
    keep = target.granularity.allocate(Wanda().score(target, errors(module, 8)), target.groups(), Budget(share=0.5))
    assert all(bool((mask.view(8, 8).sum(dim=1) == 4).all()) for mask in keep.values())


def test_a_dead_channel_goes_first_and_scale_enters_by_the_power() -> None:
    module = convolutional()
    with torch.no_grad():
        module[0].weight[1], module[0].bias[1] = 0, 0
    target, data = Weights(module, Rows()), batches(module)
    for power in (1.0, 2.0):
        before = ActivationAttention(power).score(target, data)["0.weight"]
        assert float(before[1]) == 0 and int(before.argmin()) == 1
        with torch.no_grad():
            module[0].weight[2] *= 3
            module[0].bias[2] *= 3
        after = ActivationAttention(power).score(target, data)["0.weight"]
        assert float(after[2]) == pytest.approx(float(before[2]) * 3**power)


def test_attention_is_the_mean_over_the_map() -> None:
    module = convolutional()
    data = batches(module)
    expected = F.relu(module[0](data.inputs)).square().mean(dim=(0, 2, 3)).float()
    torch.testing.assert_close(ActivationAttention(2.0).score(Weights(module, Rows()), data)["0.weight"], expected)


class Residual(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.scale * inputs.roll(1, dims=-1)


def test_a_block_that_does_nothing_has_no_influence() -> None:
    module = nn.Sequential(Residual(0.0), Residual(0.5), Residual(5.0))
    data = errors(module, 6)
    influence = block_influence(module, ["0", "1", "2"], lambda: module(data.inputs))
    assert float(influence[0]) == pytest.approx(0, abs=1e-12)
    assert 0 < float(influence[1]) < float(influence[2]) < 2
    inside = module[0](data.inputs)
    expected = 1 - F.cosine_similarity(inside, module[1](inside), dim=-1).mean()
    assert float(influence[1]) == pytest.approx(float(expected), rel=1e-6)
    shuffled = block_influence(module, ["0", "1", "2"], lambda: module(data.inputs.flip(0)))
    torch.testing.assert_close(influence, shuffled)


class Circular(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(skipped(nn.Conv2d, 2, 3, 3, padding=1, padding_mode="circular", dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wanda().score(Weights(perceptron(5, 3))), "needs an Objective"),
        (lambda: Wanda().score(Weights({"w": torch.ones(2, 2)}), batches(perceptron(5, 3))), "wraps a module"),
        (lambda: Wanda(("0.bias",)).score(Weights(perceptron(5, 3)), batches(perceptron(5, 3))), "0.bias"),
        (lambda: Wanda().score(Weights(Circular()), errors(Circular(), 2, 6, 6)), "circular"),
        (lambda: Wanda().score(Weights(perceptron(5, 3)), LossOf(())), "never ran"),
        (lambda: ActivationAttention().score(Weights(perceptron(5, 3)), batches(perceptron(5, 3))), "no outputs"),
        (lambda: block_influence(perceptron(5, 3), ["0"], lambda: None), "never ran"),
    ],
)
def test_wrong_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
