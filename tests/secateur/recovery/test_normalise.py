"""Statistics of pruned networks are those asked for, and nothing changes where nothing was pruned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.recovery.normalise import Moments, RecalibrateBatchNorm, Renormalize
from secateur.surgery import trace
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.networks import convolutional, perceptron
from tests.secateur.surgery.networks import Residual, pixels, seeded
from tests.secateur.toys import generator

DEEP = (6, 24, 24, 24, 3)


def batches(*shape: int, samples: int = 48, size: int = 20) -> tuple[Tensor, ...]:
    return torch.randn(samples, *shape, generator=generator(3), dtype=torch.float64).split(size)


def sparse(module: nn.Module, share: float) -> nn.Module:
    """A copy whose smallest weights are 0."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                threshold = parameter.abs().flatten().quantile(share)
                parameter[parameter.abs() < threshold] = 0
    return module


def test_moments_of_batches_are_those_of_all_samples() -> None:
    values = 1e4 + torch.randn(30, 4, 5, generator=generator(), dtype=torch.float64)
    moments = Moments(4)
    for part in values.split(7):
        moments.add(part, 1)
    torch.testing.assert_close(moments.mean, values.mean((0, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.variance(1), values.var((0, 2)), rtol=1e-9, atol=0)


def test_batch_norms_get_the_statistics_of_all_batches_one_after_the_other() -> None:
    net = nn.Sequential(convolutional()[:3], nn.BatchNorm2d(4, dtype=torch.float64)).eval()
    data = batches(2, 6, 6)
    weights = {name: value.clone() for name, value in net.named_parameters()}
    RecalibrateBatchNorm()(net, data)
    before = nn.Sequential(net[0][0])(torch.cat(data))
    torch.testing.assert_close(net[0][1].running_mean, before.mean((0, 2, 3)))
    torch.testing.assert_close(net[0][1].running_var, before.var((0, 2, 3)))
    second = net[0](torch.cat(data))
    torch.testing.assert_close(net[1].running_var, second.var((0, 2, 3)))
    assert_same(weights, dict(net.named_parameters()))
    assert not net.training
    once = copy.deepcopy(net)
    RecalibrateBatchNorm()(net, data)
    assert_same(once.state_dict(), net.state_dict())


@pytest.mark.parametrize("dead_input", [False, True])
def test_channels_get_the_dense_means_and_deviations(dead_input: bool) -> None:
    dense, data = perceptron(*DEEP), batches(6)
    pruned = sparse(dense, 0.9)
    if dead_input:
        with torch.no_grad():
            pruned[2].weight[5] = 0
    Renormalize()(pruned, dense, data)
    inputs = torch.cat(data)
    for depth in (1, 3, 5, 7):
        want, got = dense[:depth](inputs), pruned[:depth](inputs)
        torch.testing.assert_close(got.mean(0), want.mean(0), rtol=1e-5, atol=1e-8)
        alive = got.std(0) > 1e-9  # the others read nothing that still varies
        assert bool(alive.any())
        torch.testing.assert_close(got.std(0)[alive], want.std(0)[alive], rtol=1e-5, atol=0)


def test_zeros_stay_zero_and_the_same_comes_out_twice() -> None:
    dense, data = perceptron(*DEEP), batches(6)
    zeros = {name: value == 0 for name, value in sparse(dense, 0.8).named_parameters() if value.dim() > 1}
    state = assert_deterministic(lambda: dict(Renormalize()(sparse(dense, 0.8), dense, data).state_dict()))
    for name, zero in zeros.items():
        assert_same(state[name] == 0, zero)


@pytest.mark.parametrize("method", [Renormalize(), Renormalize(reshift=False), Renormalize(rescale=False)])
def test_a_dense_network_stays_as_it_is_bit_for_bit(method: Renormalize) -> None:
    for make, shape in ((lambda: perceptron(*DEEP), (6,)), (convolutional, (2, 6, 6))):
        module, dense = make(), make()
        method(module, dense, batches(*shape))
        assert_same(dense.state_dict(), module.state_dict())


def test_a_rescale_keeps_means_and_a_reshift_keeps_deviations() -> None:
    dense, data = perceptron(6, 9, 2), torch.cat(batches(6))
    plain, scaled, shifted = (sparse(dense, 0.6) for _ in range(3))
    Renormalize(reshift=False)(scaled, dense, [data])
    Renormalize(rescale=False)(shifted, dense, [data])
    torch.testing.assert_close(scaled[0](data).mean(0), plain[0](data).mean(0))
    torch.testing.assert_close(shifted[0](data).std(0), plain[0](data).std(0))
    torch.testing.assert_close(shifted[0](data).mean(0), dense[0](data).mean(0))


def test_networks_at_90_percent_agree_more_with_the_dense_ones_on_average() -> None:
    data = batches(6, samples=160)
    unseen = torch.randn(500, 6, generator=generator(99), dtype=torch.float64)

    def agreement(first: nn.Module, second: nn.Module) -> float:
        return float((first(unseen).argmax(1) == second(unseen).argmax(1)).double().mean())

    gains = []
    for seed in range(8):
        dense = perceptron(6, 48, 48, 48, 48, 3, activation=nn.ReLU, seed=seed)
        pruned = sparse(dense, 0.9)
        before = agreement(pruned, dense)
        gains.append(agreement(Renormalize()(pruned, dense, data), dense) - before)
    assert sum(gains) > 0
    assert sum(gain > 0 for gain in gains) > 4


def test_a_cut_network_is_matched_channel_by_channel() -> None:
    dense = seeded(Residual)
    network = trace(dense, pixels())
    keep = {group.name: torch.arange(group.size) % 3 != 0 for group in network.groups()}
    small = network.cut(keep)
    data = torch.randn(8, 3, 8, 8, generator=generator(5))
    Renormalize()(small.module, dense, [data], cuts=small.cuts)
    (group,) = (group for group in network.groups() if "a1" in group.name)
    want, got = (net.a1[0](net.stem(data)) for net in (dense, small.module))
    want = want[:, keep[group.name]]
    torch.testing.assert_close(got.mean((0, 2, 3)), want.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.std((0, 2, 3)), want.std((0, 2, 3)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="give cuts"):
        Renormalize()(small.module, dense, [data])


def test_what_cannot_be_mended_is_refused() -> None:
    module = perceptron(4, 3)
    with pytest.raises(ValueError, match="no calibration data"):
        Renormalize()(module, module, [])
    with pytest.raises(ValueError, match="no linear layers"):
        Renormalize()(module, module, [torch.ones(1, 4)], layers=["9"])
    with pytest.raises(ValueError, match="NaN"):
        Renormalize()(module, perceptron(4, 3), [torch.full((2, 4), torch.nan, dtype=torch.float64)])
    with pytest.raises(ValueError, match="floor"):
        Renormalize(floor=1)
