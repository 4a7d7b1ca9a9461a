"""A mask whose budget holds while it is soft."""

from __future__ import annotations

import pytest
import torch

from secateur.transport_mask import TransportMask
from secateur.units import UnitGroup
from tests.contracts import assert_deterministic, assert_mask_of_ones_changes_nothing, assert_same
from tests.secateur.toys import Perceptron, generator, regression

GROUPS = [UnitGroup("a", 10, ()), UnitGroup("b", 7, ())]


def scored(share: float, temperature: float = 1.0) -> TransportMask:
    mask = TransportMask(GROUPS, share, temperature)
    with torch.no_grad():
        for logits in mask.logits:
            logits.normal_(generator=generator())
    return mask


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 10.0])
def test_the_budget_holds_at_every_temperature(temperature: float) -> None:
    mask = scored(0.5, temperature)
    soft = mask()
    assert [float(each.detach().sum()) for each in soft.values()] == pytest.approx([5, 3], abs=1e-5)
    assert float(mask.penalty().detach()) == pytest.approx(8 / 17, abs=1e-6)


def test_cooling_ends_in_the_hardened_mask() -> None:
    mask = scored(0.5)
    for _ in range(20_000):
        mask.cool()
    keep = mask.keep()
    for name, soft in mask().items():
        torch.testing.assert_close(soft, keep[name].float(), rtol=0, atol=1e-3)
    assert [int(each.sum()) for each in keep.values()] == [5, 3]
    restored = TransportMask(GROUPS, 0.5)
    restored.load_state_dict(mask.state_dict())
    assert restored.temperature == mask.temperature
    assert_same(dict(restored()), dict(mask()))


def test_a_full_share_changes_nothing() -> None:
    model = Perceptron.random(3, 6, 2)
    inputs = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    mask = TransportMask(model.groups(), 1.0)
    assert_same(mask()["layer.hidden"].detach(), torch.ones(6))
    assert bool(mask.keep()["layer.hidden"].all())
    assert_mask_of_ones_changes_nothing(model, lambda target: target(inputs))


def test_training_finds_the_neurons_that_matter() -> None:
    data = regression()
    model = Perceptron.random(5, 8, 2)
    # Neurons 0, 3 and 5 alone reach the outputs.
    useful = torch.tensor([0, 3, 5])
    model.second[:, [i for i in range(8) if i not in useful.tolist()]] = 0
    outputs = model(data.inputs)
    mask = TransportMask(model.groups(), 3 / 8, temperature=0.5)
    optimizer = torch.optim.Adam(mask.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        with model.masked(mask()):
            loss = (model(data.inputs) - outputs).square().mean()
        loss.backward()
        optimizer.step()
        mask.cool()
    assert mask.keep()["layer.hidden"].nonzero()[:, 0].tolist() == useful.tolist()


def test_permuting_scores_permutes_the_mask_deterministically() -> None:
    mask = scored(0.4)
    soft = assert_deterministic(lambda: mask()["a"].detach())
    order = torch.randperm(10, generator=generator(1))
    with torch.no_grad():
        mask.logits[0].copy_(mask.logits[0][order].clone())
    torch.testing.assert_close(mask()["a"].detach(), soft[order])


def test_wrong_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="share must be"):
        TransportMask(GROUPS, 1.5)
    with pytest.raises(ValueError, match="temperature must be"):
        TransportMask(GROUPS, 0.5, temperature=0)
    with pytest.raises(ValueError, match="keeps 0 of the 7 units of group 'b', whose floor is 1"):
        TransportMask(GROUPS, 0.1)
