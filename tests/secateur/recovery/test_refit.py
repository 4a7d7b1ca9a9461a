"""Refitted layers are least squares of the dense layer's output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.recovery.refit import ObsRefit
from secateur.solvers.gram import Gram, input_grams
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.toys import generator


def correlated(samples: int, d: int, seed: int = 0) -> torch.Tensor:
    source = generator(seed)
    mixing = torch.randn(d, d, generator=source, dtype=torch.float64)
    return torch.randn(samples, d, generator=source, dtype=torch.float64) @ mixing


def test_columns_are_the_least_squares_fit_to_the_layers_output() -> None:
    inputs = correlated(50, 8)
    weight = torch.randn(4, 8, generator=generator(1), dtype=torch.float64)
    keep = torch.tensor([True, False, True, True, False, True, True, False])
    gram = Gram(8, dtype=torch.float64).add(inputs)
    refitted = ObsRefit(damp=0).columns(weight, gram, keep)
    expected = torch.linalg.lstsq(inputs[:, keep], inputs @ weight.T).solution.T
    torch.testing.assert_close(refitted, expected)


def test_a_full_mask_changes_nothing_in_any_precision() -> None:
    gram = Gram(6).add(correlated(30, 6).float())
    for dtype in (torch.float16, torch.float32, torch.float64):
        weight = torch.randn(3, 6, generator=generator()).to(dtype)
        assert_same(weight, ObsRefit().masked(weight, gram, torch.ones(3, 6, dtype=torch.bool)))
        assert_same(weight, ObsRefit().columns(weight, gram, torch.ones(6, dtype=torch.bool)))


def test_permuting_inputs_permutes_the_refit() -> None:
    inputs = correlated(40, 7)
    weight = torch.randn(2, 7, generator=generator(2), dtype=torch.float64)
    keep = torch.rand(2, 7, generator=generator(3)) < 0.5
    order = torch.randperm(7, generator=generator(4))
    gram, permuted = (Gram(7, dtype=torch.float64).add(each) for each in (inputs, inputs[:, order]))
    found = assert_deterministic(lambda: ObsRefit().masked(weight, gram, keep))
    torch.testing.assert_close(ObsRefit().masked(weight[:, order], permuted, keep[:, order]), found[:, order])


def test_a_model_fed_with_noise_is_mended_without_data() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 3))
    noise, data = (torch.randn(400, 5, generator=generator(seed)) for seed in (1, 2))
    with torch.no_grad(), input_grams(model, {"second": model[2]}) as grams:
        model(noise)
    keep = torch.arange(24) % 2 == 0
    hidden = model[:2](data).detach()
    dense, weight = model(data).detach() - model[2].bias.detach(), model[2].weight.detach()
    mended = hidden[:, keep] @ ObsRefit(1e-3).columns(weight, grams["second"], keep).T
    plain = hidden[:, keep] @ weight[:, keep].T
    assert (mended - dense).square().mean() < 0.2 * (plain - dense).square().mean()


def test_wrong_masks_are_refused() -> None:
    gram = Gram(3).add(torch.eye(3))
    with pytest.raises(ValueError, match="one for each input"):
        ObsRefit().columns(torch.ones(2, 3), gram, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="do not fit"):
        ObsRefit().masked(torch.ones(2, 3), gram, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="not positive definite"):
        singular = Gram(3).add(-torch.ones(1, 3) * torch.tensor([1.0, 0.0, 0.0]))
        keep = torch.tensor([False, True, True])
        ObsRefit(damp=0).columns(torch.ones(2, 3), singular, keep)
