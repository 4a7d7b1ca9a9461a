"""The contracts of the house, as assertions that the tests of every method call.

- identity: a full budget, a penalty weight of 0 and a mask of ones change nothing, bit for bit;
- mask equals cut: running under a 0/1 mask agrees with running the cut object;
- permutation: permuting the units permutes the scores;
- exact budget: what is kept never exceeds the budget, and nothing that was left out would still fit;
- determinism: the same call gives the same result, and touches no global random state;
- round trip: what is saved loads back bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.allocation import Allocator, Budget, unit_costs
from secateur.units import Keep, Prunable, Scores, UnitGroup, check_keep


def assert_same(first: Any, second: Any, where: str = "result") -> None:
    """Equal bit for bit: tensors (dtype and NaN included), and mappings and sequences of them."""
    if isinstance(first, Tensor):
        assert isinstance(second, Tensor), f"{where}: a tensor became {type(second)}"
        assert (first.dtype, first.shape) == (second.dtype, second.shape), f"{where}: {first.shape} != {second.shape}"
        assert first.detach().cpu().numpy().tobytes() == second.detach().cpu().numpy().tobytes(), f"{where} differs"
    elif isinstance(first, Mapping):
        assert list(first) == list(second), f"{where}: keys {list(first)} != {list(second)}"
        for key in first:
            assert_same(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, Sequence) and not isinstance(first, str):
        assert len(first) == len(second), f"{where}: {len(first)} != {len(second)} entries"
        for index, (left, right) in enumerate(zip(first, second, strict=True)):
            assert_same(left, right, f"{where}[{index}]")
    else:
        assert first == second, f"{where}: {first!r} != {second!r}"


def assert_deterministic(make: Callable[[], Any]) -> Any:
    """`make` gives the same result twice, whatever the global random state, and leaves that state alone.

    `make` builds what it needs (generators too) from seeds. Returns the result.
    """
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  the global state is what is under test
        torch.manual_seed(seed)
        before = _global_random_state()
        results.append(make())
        assert_same(before, _global_random_state(), "global random state")
    assert_same(results[0], results[1])
    return results[0]


def _global_random_state() -> list[Any]:
    numpy_state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    return [repr(random.getstate()), numpy_state[1].tolist(), repr(numpy_state[2:]), torch.get_rng_state()]


def assert_permutes(
    score: Callable[[Any], Scores],
    target: Any,
    permute: Callable[[Any, Tensor], Any],
    group: str,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Scoring the permuted target gives the permuted scores.

    Args:
        score: the criterion.
        target: what is scored, and can be permuted.
        permute: (target, order) -> the target whose unit i is the old unit order[i].
        group: name of the permuted group.
        rtol: relative tolerance, for sums whose order changes.
        atol: absolute tolerance.
    """
    scores = score(target)[group]
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(score(permute(target, order))[group], scores[order], rtol=rtol, atol=atol)


def assert_scores_fit(scores: Scores, groups: Sequence[UnitGroup]) -> None:
    """One score for each unit of each group, none of them NaN, on the way to an allocator."""
    assert set(scores) == {group.name for group in groups}
    for group in groups:
        assert scores[group.name].shape == (group.size,), group.name
        assert scores[group.name].is_floating_point(), group.name
        assert not bool(torch.isnan(scores[group.name]).any()), group.name
        assert not scores[group.name].requires_grad, group.name


def assert_exact_budget(keep: Keep, groups: Sequence[UnitGroup], budget: Budget) -> None:
    """The kept cost does not exceed the budget, no unit that was left out would fit, and every floor holds."""
    check_keep(keep, groups)
    costs = {group.name: unit_costs(group, budget.cost) for group in groups}
    amount = budget.amount(groups)
    spent = sum(float(costs[g.name][keep[g.name].cpu()].sum()) for g in groups)
    assert spent <= amount * (1 + 1e-6), f"kept {spent} of a budget of {amount}"
    for group in groups:
        left_out = costs[group.name][~keep[group.name].cpu()]
        slack = (amount - spent) * (1 - 1e-6)
        assert not len(left_out) or float(left_out.min()) > slack, f"{group.name}: a unit would still fit in {slack}"
        assert int(keep[group.name].sum()) >= min(group.min_keep, group.size), f"{group.name} is below its floor"


def assert_allocator_keeps_its_contracts(
    allocator: Allocator, scores: Scores, groups: Sequence[UnitGroup], budgets: Iterable[Budget]
) -> None:
    """Exact budget, identity at 100 %, determinism, and scores and groups left as they were."""
    before = {name: value.clone() for name, value in scores.items()}
    for budget in budgets:
        keep = assert_deterministic(partial(allocator, scores, groups, budget))
        assert_exact_budget(keep, groups, budget)
        everything = allocator(scores, groups, Budget(share=1.0, cost=budget.cost))
        assert all(bool(mask.all()) for mask in everything.values()), "a full budget must keep everything"
    assert_same(before, dict(scores), "scores")


def assert_full_keep_changes_nothing(target: Prunable) -> None:
    """Cutting nothing away gives the same tensors, bit for bit."""
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}
    assert_same(dict(target.tensors()), dict(target.cut(keep).tensors()), "tensors")


def assert_mask_of_ones_changes_nothing(target: Prunable, run: Callable[[Any], Tensor]) -> None:
    """Running under a mask of ones gives the same output, bit for bit, and the mask is gone afterwards."""
    before = run(target)
    with target.masked({group.name: torch.ones(group.size) for group in target.groups()}):
        assert_same(before, run(target), "output under a mask of ones")
    with target.masked({group.name: torch.zeros(group.size) for group in target.groups()}):
        pass
    assert_same(before, run(target), "output after the mask")


def assert_mask_equals_cut(
    target: Prunable, keep: Keep, run: Callable[[Any], Tensor], rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    """Running under the 0/1 mask of `keep` agrees with running the cut object."""
    with target.masked({name: mask.float() for name, mask in keep.items()}):
        masked = run(target)
    torch.testing.assert_close(run(target.cut(keep)), masked, rtol=rtol, atol=atol)


def assert_round_trip(save: Callable[[Path], Any], load: Callable[[Path], Any], saved: Any, path: Path) -> None:
    """What `save` wrote, `load` reads back equal to `saved`, bit for bit, and saving again writes the same bytes."""
    save(path)
    first = path.read_bytes()
    assert_same(saved, load(path), path.name)
    save(path)
    assert path.read_bytes() == first, f"{path.name}: the same object was written as other bytes"
