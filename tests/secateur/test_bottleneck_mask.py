"""The bottleneck against the divergence that it stands for, and on features of which few are useful."""

from __future__ import annotations

import copy

import pytest
import torch

from secateur.allocation import Budget
from secateur.bottleneck_mask import BottleneckMask
from tests.contracts import assert_deterministic, assert_exact_budget, assert_same
from tests.secateur.test_masks import GROUPS, with_logits
from tests.secateur.toys import Weights, generator


def test_the_penalty_is_the_least_divergence_from_a_prior_of_mean_0() -> None:
    mask = with_logits(BottleneckMask(GROUPS[1:]))
    (charge,) = mask.charges()
    ratio = mask.logits[0].detach().exp()  # mu^2 / sigma^2, at sigma = 1
    # KL(N(mu, 1) || N(0, v)) = 0.5 (log v + (1 + mu^2) / v - 1), over a fine grid of v.
    grid = torch.logspace(-1, 5, 20_001, dtype=torch.float64)[:, None]
    divergence = 0.5 * (grid.log() + (1 + ratio.double()) / grid - 1)
    torch.testing.assert_close(charge.detach().double(), divergence.min(0).values, rtol=1e-4, atol=1e-4)
    order = mask.logits[0].argsort()
    assert bool((charge[order].diff() > 0).all()), "it rises with |mu| / sigma"
    assert BottleneckMask(GROUPS, initial=-80.0).penalty().item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(mask.penalty("macs"), charge.mean())


def test_masks_are_their_means_in_evaluation_and_noise_around_them_in_training() -> None:
    new = BottleneckMask(GROUPS)
    assert_same(new.eval()(), {group.name: torch.ones(group.size) for group in GROUPS})
    mask = BottleneckMask([GROUPS[1]], initial=1.0)
    with torch.no_grad():
        mask.means[0].fill_(-2.0)
    drawn = torch.stack([mask()["block.0.channels"].detach() for _ in range(500)])
    assert float(drawn.mean()) == pytest.approx(-2, abs=0.05)
    assert float(drawn.std()) == pytest.approx(2 * 2.718281828**-0.5, rel=0.05)


def test_contracts() -> None:
    def run() -> list[object]:
        mask = with_logits(BottleneckMask(GROUPS))
        return [mask(), mask.penalty("macs"), mask.keep(), mask.keep(Budget(share=0.5)), mask.eval()()]

    assert_deterministic(run)
    mask = with_logits(BottleneckMask(GROUPS))
    for budget in (Budget(limit=17), Budget(share=0.4, cost="macs"), Budget(share=1.0)):
        assert_exact_budget(mask.keep(budget), GROUPS, budget)
    assert all(bool(kept.all()) for kept in BottleneckMask(GROUPS).keep().values())
    order = torch.randperm(40, generator=generator(1))
    before = mask.keep(Budget(limit=20))["block.0.channels"]
    with torch.no_grad():
        mask.logits[1].copy_(mask.logits[1][order])
    assert torch.equal(mask.keep(Budget(limit=20))["block.0.channels"], before[order])
    state = copy.deepcopy(mask.state_dict())
    resumed = BottleneckMask(GROUPS, seed=9)
    resumed.load_state_dict(state)
    assert_same(mask(), resumed())


def test_what_a_regression_needs_survives_and_the_rest_drowns() -> None:
    source = generator(4)
    inputs = torch.randn(200, 20, generator=source, dtype=torch.float64)
    useful = torch.arange(20) % 4 == 1
    weights = torch.where(useful, 1.0 + torch.rand(20, generator=source, dtype=torch.float64), 0.1)
    wanted = inputs @ (weights * useful)
    target = Weights(weights)
    mask = BottleneckMask(target.groups())
    optimizer = torch.optim.Adam(mask.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        with target.masked(mask()):
            loss = (inputs @ target.effective() - wanted).square().mean()
        (loss + 0.5 * mask.penalty()).backward()
        optimizer.step()
    assert torch.equal(mask.keep()["blocks"], useful)
    assert torch.equal(mask.keep(Budget(limit=5))["blocks"], useful)
