"""Gates that hold their expected cost: exactly, with the gradient of the constraint, whatever the loss weighs."""

from __future__ import annotations

import pytest
import torch

from secateur.allocation import Budget
from secateur.budgeted_mask import BudgetedConcrete
from secateur.units import UnitGroup
from tests.contracts import assert_deterministic, assert_exact_budget, assert_same

GROUPS = (
    UnitGroup("heads", 4, (), {"macs": torch.full((4,), 10.0)}),
    UnitGroup("neurons", 30, (), {"macs": torch.ones(30)}),
)


def with_logits(mask: BudgetedConcrete, seed: int = 0) -> BudgetedConcrete:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in mask.logits:
            logits.copy_(3 * torch.randn(logits.shape, generator=source))
    return mask


@pytest.mark.parametrize("cost", ["units", "macs"])
@pytest.mark.parametrize("share", [0.01, 0.4, 0.999])
def test_the_expected_cost_is_the_share(cost: str, share: float) -> None:
    mask = with_logits(BudgetedConcrete(GROUPS, cost))
    mask.hold(share)
    before = [logits.clone() for logits in mask.logits]
    drawn = mask()
    mask.settle()
    assert float(mask.penalty(cost)) == pytest.approx(share, rel=1e-4)
    shifts = torch.cat([old - new for old, new in zip(before, mask.logits, strict=True)])
    torch.testing.assert_close(shifts, shifts[:1].expand(34))
    again = with_logits(BudgetedConcrete(GROUPS, cost))
    again.hold(share)
    again.settle()
    for name, value in again().items():
        torch.testing.assert_close(value, drawn[name], atol=1e-4, rtol=0)


def test_the_gradient_of_the_shift_is_that_of_the_implicit_function() -> None:
    mask = with_logits(BudgetedConcrete(GROUPS, "macs"))
    mask.double()
    mask.hold(0.4)
    gradients = torch.cat(torch.autograd.grad(mask.shift(), [*mask.logits]))
    assert float(gradients.sum()) == pytest.approx(1.0)
    for group, unit, place in [(0, 2, 2), (1, 7, 11)]:
        ends = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                mask.logits[group][unit] += step
                ends.append(float(mask.shift()))
                mask.logits[group][unit] -= step
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(float(gradients[place]), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_what_is_worth_most_stays_whatever_the_scale_of_the_loss(scale: float) -> None:
    mask = BudgetedConcrete(GROUPS)
    worth = scale * torch.rand(34, generator=torch.Generator().manual_seed(0)) ** 3
    optimiser = torch.optim.Adam(mask.parameters(), lr=0.1, betas=(0.9, 0.95), eps=1e-16)
    for step in range(200):
        mask.hold(max(0.4, mask.first_share - step / 150))
        loss = (worth * (1 - torch.cat([*mask().values()])).square()).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    kept = torch.cat([*mask.keep(Budget(limit=13)).values()])
    best = worth.topk(13).values.sum()
    assert float(worth[kept].sum()) >= 0.97 * float(best)


def test_contracts() -> None:
    def run() -> list[object]:
        mask = with_logits(BudgetedConcrete(GROUPS, "macs"))
        mask.hold(0.5)
        return [mask(), mask(), mask.keep(Budget(share=0.5, cost="macs")), mask.eval()()]

    kept = assert_deterministic(run)[2]
    assert_exact_budget(kept, GROUPS, Budget(share=0.5, cost="macs"))
    new = BudgetedConcrete(GROUPS)
    assert_same(new.eval()(), {group.name: torch.ones(group.size) for group in GROUPS})
    assert all(bool(keep.all()) for keep in new.keep().values())


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        BudgetedConcrete(GROUPS).hold(1.0)
    with pytest.raises(ValueError, match="no cost 'ms'"):
        BudgetedConcrete(GROUPS, "ms")
    with pytest.raises(ValueError, match="above 0"):
        BudgetedConcrete([UnitGroup("a", 2, (), {"macs": torch.zeros(2)})], "macs")
