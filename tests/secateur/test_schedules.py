"""Schedules, and the drivers that prune in rounds."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.granularity import Weights
from secateur.importance import Magnitude
from secateur.pruning_callback import PruningCallback
from secateur.schedules import (
    Cosine,
    Linear,
    OneShot,
    Polynomial,
    Round,
    Schedule,
    Staircase,
    alternate_dimensions,
    budget_at,
    grow_prune,
    iterative_pruning,
    stability,
)
from secateur.training import Shuffled, fit
from secateur.training.weights import snapshot
from secateur.units import Keep, UnitGroup
from tests.contracts import assert_same
from tests.secateur.importance.test_criteria import toy
from tests.secateur.networks import BATCHES, Regression
from tests.secateur.toys import generator

SCHEDULES: list[Schedule] = [Polynomial(), Polynomial(1.0), Linear(), Cosine(), Staircase(4), OneShot(0.5)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_rises_to_one(schedule: Schedule) -> None:
    values = [schedule(step / 100) for step in range(101)]
    assert all(after >= before for before, after in pairwise(values))
    assert values[-1] == 1.0 and values[0] >= 0.0
    assert (schedule(-1.0), schedule(2.0)) == (values[0], 1.0)
    if not isinstance(schedule, Staircase):
        assert values[0] == 0.0


def test_cubic_is_zhu_and_guptas_formula() -> None:
    first, last = 0.1, 0.9
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        sparsity = last + (first - last) * (1 - progress) ** 3
        assert first + (last - first) * Polynomial()(progress) == pytest.approx(sparsity)
    assert (Polynomial()(1.0) - Polynomial()(0.999)) / 0.001 < 1e-5
    assert all(Polynomial(1.0)(p) == pytest.approx(Linear()(p)) for p in (0.0, 0.3, 1.0))


def test_stairs_have_equal_steps() -> None:
    assert [Staircase(4)(p) for p in (0, 0.24, 0.25, 0.5, 0.75, 1)] == [0.25, 0.25, 0.5, 0.75, 1, 1]


def test_budgets_on_the_way() -> None:
    groups = [UnitGroup("a", 10, (), {"macs": torch.full((10,), 3.0)})]
    assert budget_at(Linear(), 0.5, Budget(share=0.2), groups) == Budget(share=0.6)
    assert budget_at(Linear(), 0.5, Budget(limit=10.0, cost="macs"), groups) == Budget(limit=20.0, cost="macs")
    assert budget_at(Linear(), 0.5, Budget(limit=99.0, cost="macs"), groups).limit == 30.0
    assert budget_at(Linear(), 1.0, Budget(limit=7.0), groups) == Budget(limit=7.0)
    assert budget_at(Linear(), 0.0, Budget(share=0.2), groups) == Budget(share=1.0)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 1.0])
def test_growing_conserves_the_count(fraction: float) -> None:
    keep = torch.rand(100, generator=generator()) < 0.3
    scores, growth = torch.rand(2, 100, generator=generator(1)).unbind()
    after = grow_prune(keep, scores, growth, fraction)
    assert after.sum() == keep.sum()
    exchanged = int(fraction * int(keep.sum()))
    stays = (
        keep & (scores >= scores[keep].sort().values[exchanged]) if exchanged < keep.sum() else torch.zeros_like(keep)
    )
    assert bool(after[stays].all())
    grown = after & ~stays
    assert int(grown.sum()) == exchanged
    if exchanged:
        assert float(growth[grown].min()) >= float(growth[~after].max())
    assert keep is not after


def test_nothing_grows_where_everything_is_kept() -> None:
    keep = torch.ones(5, dtype=torch.bool)
    assert_same(grow_prune(keep, torch.rand(5), torch.rand(5), 0.5), keep)
    with pytest.raises(ValueError, match="fraction"):
        grow_prune(keep, torch.ones(5), torch.ones(5), 1.5)


class From:
    """The batches from a step on."""

    def __init__(self, start: int) -> None:
        self.start = start

    def batch_at(self, step: int, /) -> Tensor:
        return BATCHES.batch_at(self.start + step)


def train(target: Weights, keep: Keep, first: int, last: int) -> None:
    fit(target.module, From(first), steps=last - first, callbacks=[PruningCallback.fixed(keep)])  # type: ignore[arg-type]


def tickets(module: Regression, rewind_to: int, rounds: int = 3, steps: int = 6) -> list[Round]:
    rounds_of = iterative_pruning(
        module, train, Magnitude(), steps=steps, rounds=rounds, prune_share=0.2, rewind_to=rewind_to
    )
    return list(rounds_of)


@pytest.mark.parametrize("rewind_to", [0, 2, 6])
def test_iterative_pruning_is_exact_and_nested(rewind_to: int) -> None:
    module = Regression()
    found = tickets(module, rewind_to)
    assert [round_.number for round_ in found] == [0, 1, 2, 3]
    for number, round_ in enumerate(found):
        assert sum(int(mask.sum()) for mask in round_.keep.values()) == int(48 * 0.8**number * (1 + 1e-9))
        for name, mask in round_.keep.items():
            assert not round_.endpoint[name].flatten()[~mask].any()
            assert not number or bool((found[number - 1].keep[name] | ~mask).all())
    assert_same(dict(found[-1].endpoint), dict(module.state_dict()))


@pytest.mark.parametrize("rewind_to", [0, 3])
def test_survivors_are_rewound_bit_for_bit(rewind_to: int) -> None:
    module, twin = Regression(), Regression()
    ones = {group.name: torch.ones(group.size, dtype=torch.bool) for group in Weights(twin).groups()}
    if rewind_to:
        train(Weights(twin), ones, 0, rewind_to)
    start = snapshot(twin)
    seen = []

    def spy(target: Weights, keep: Keep, first: int, last: int) -> None:
        seen.append((first, last, snapshot(target.module), keep))  # type: ignore[arg-type]
        train(target, keep, first, last)

    list(iterative_pruning(module, spy, Magnitude(), steps=6, rounds=2, rewind_to=rewind_to))
    assert [span[:2] for span in seen] == [(0, rewind_to)] * bool(rewind_to) + [(rewind_to, 6)] * 3
    for _, _, state, keep in seen[bool(rewind_to) :]:
        for name, value in state.items():
            mask = keep[name].view(value.shape) if name in keep else torch.ones_like(value, dtype=torch.bool)
            assert_same(value[mask], start[name][mask])
            assert not value[~mask].any()


def test_rewinding_to_the_end_is_pruning_of_the_trained_network() -> None:
    dense, *later = tickets(Regression(), rewind_to=6)
    for round_ in later:
        for name, mask in round_.keep.items():
            assert_same(round_.endpoint[name].flatten()[mask], dense.endpoint[name].flatten()[mask])


def test_one_round_is_one_shot() -> None:
    found = tickets(Regression(), rewind_to=0, rounds=1)
    trained = Regression()
    fit(trained, BATCHES, steps=6)
    each = Weights(trained)
    keep = each.granularity.allocate(Magnitude().score(each), each.groups(), Budget(share=0.8))
    assert_same(found[1].keep, keep)


def test_a_ticket_from_its_own_start_beats_one_from_another() -> None:
    def losses(reinitialise: bool) -> float:
        total = 0.0
        for seed in range(3):
            module = Regression(seed=seed)
            start = snapshot(module)
            ticket = list(iterative_pruning(module, train, Magnitude(), steps=40, rounds=2, prune_share=0.4))[-1]
            fresh = Regression(seed=seed + 50) if reinitialise else module
            if not reinitialise:
                fresh.load_state_dict(start)
            train(Weights(fresh), ticket.keep, 0, 40)
            with torch.no_grad():
                total += float(fresh.training_step(torch.arange(32), 0))
        return total

    assert losses(False) < losses(True)


def test_stability_is_a_distance() -> None:
    first = snapshot(Regression(seed=1))
    assert stability(first, first) == 0
    second = {name: value + 0.5 for name, value in first.items()}
    assert stability(first, second) == pytest.approx(0.5 * (48 + 10) ** 0.5)
    keep = {"network.0.weight": torch.zeros(32, dtype=torch.bool), "network.2.weight": torch.ones(16, dtype=torch.bool)}
    assert stability(first, second, keep) == pytest.approx(0.5 * (16 + 10) ** 0.5)
    again = [tickets(Regression(), 0, rounds=1)[-1].endpoint for _ in range(2)]
    assert stability(*again) == 0


def test_dimensions_take_turns() -> None:
    phases = []

    def recover(target: object, phase: int) -> object:
        phases.append((phase, [group.size for group in target.groups()]))  # type: ignore[attr-defined]
        return target

    dimensions = [lambda group: group.name == "rows", lambda group: group.name == "pairs"]
    results = list(alternate_dimensions(toy(), Magnitude(), Budget(share=0.5), dimensions, recover, rounds=2))
    assert phases == [(0, [9, 4]), (1, [9, 3]), (2, [6, 3]), (3, [6, 2])]
    assert [group.size for group in results[-1].groups()] == [6, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rewind_to": 7}, "rewind_to"), ({"prune_share": 1.0}, "prune_share"), ({"rounds": -1}, "rounds")],
)
def test_wrong_arguments_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(iterative_pruning(Regression(), train, Magnitude(), **{"steps": 6, "rounds": 1, **options}))  # type: ignore[arg-type]


def test_wrong_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        next(alternate_dimensions(toy(), Magnitude(), Budget(limit=3), [lambda g: True], lambda t, _: t))
    with pytest.raises(ValueError, match="dimension 1 has no groups"):
        next(
            alternate_dimensions(
                toy(), Magnitude(), Budget(share=0.5), [lambda g: True, lambda g: False], lambda t, _: t
            )
        )


def test_batches_repeat() -> None:
    assert isinstance(BATCHES, Shuffled)
    assert_same(From(3).batch_at(2), BATCHES.batch_at(5))
