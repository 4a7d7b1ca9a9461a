"""The best of very many units of one price, without sorting them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from secateur.allocation import UNITS, Budget, allocate, checked_scores
from secateur.units import Keep, Scores, UnitGroup

_CHUNK = 1 << 20
_DIGIT = 16


def keep_top(scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
    """What `allocate` gives, in linear time and with a bool a unit, where every unit costs the same.

    Every floating-point number is an integer whose order is the number's; the k-th largest is found digit by digit (16
    bits of it, a histogram each), and what is above it stays. Units of other costs go to `allocate`.

    Args:
        scores: group name -> (size,), the higher the better; infinities allowed.
        groups: the units; each group keeps its `min_keep` best, at least.
        budget: how much may stay.

    Raises:
        ValueError: as `allocate`.
    """
    if budget.cost != UNITS or any(UNITS in group.cost for group in groups):
        return allocate(scores, groups, budget)
    parts = [checked_scores(scores, group).detach() for group in groups]
    total = sum(group.size for group in groups)
    amount = budget.limit if budget.share is None else budget.share * total
    k = int(min(amount * (1 + 1e-9), total))  # type: ignore[operator]
    floors = {group.name: min(group.min_keep, group.size) for group in groups}
    if sum(floors.values()) > k:
        raise ValueError(f"a budget of {k} units cannot hold the floors {floors}; raise the budget or lower min_keep")
    wide = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    fixed = [_best(part, floors[group.name], wide) for group, part in zip(groups, parts, strict=True)]
    if not k:
        return {g.name: torch.zeros_like(part, dtype=torch.bool) for g, part in zip(groups, parts, strict=True)}
    threshold, equal = _kth_largest(parts, fixed, wide, k)
    keep: Keep = {}
    for group, part, floor in zip(groups, parts, fixed, strict=True):
        keep[group.name], equal = _at_least(part, floor, wide, threshold, equal)
    return keep


def _at_least(part: Tensor, floor: Tensor | None, wide: torch.dtype, threshold: int, equal: int) -> tuple[Tensor, int]:
    """True for keys above the threshold and for the first `equal` ones at it; and how many of those are left."""
    mask = torch.empty(len(part), dtype=torch.bool, device=part.device)
    start = 0
    for keys in _keys(part, floor, wide):
        tied = keys == threshold
        taken = tied & (tied.cumsum(0) <= equal) if equal else torch.zeros_like(tied)
        equal -= int(taken.sum())
        mask[start : start + len(keys)] = (keys > threshold) | taken
        start += len(keys)
    return mask, equal


def _best(part: Tensor, count: int, wide: torch.dtype) -> Tensor | None:
    """(count,) ascending indices of the best, as `topk_mask` has them; None for none."""
    if not count:
        return None
    if count == 1:
        # Of equal ones argmax gives the first.
        return part.argmax()[None]
    return _at_least(part, None, wide, *_kth_largest([part], [None], wide, count))[0].nonzero()[:, 0]


def _kth_largest(
    parts: Sequence[Tensor], floors: Sequence[Tensor | None], wide: torch.dtype, k: int
) -> tuple[int, int]:
    """The k-th largest key of all, and how many that equal it belong to the k largest."""
    shift = (64 if wide == torch.float64 else 32) - _DIGIT
    lowest = -(1 << (_DIGIT - 1))
    prefix: int | None = None
    while shift >= 0:
        counts = torch.zeros(1 << _DIGIT, dtype=torch.int64)
        for part, floor in zip(parts, floors, strict=True):
            for keys in _keys(part, floor, wide):
                if prefix is None:
                    digits = (keys >> shift) - lowest
                else:
                    inside = keys[(keys >> (shift + _DIGIT)) == prefix]
                    digits = (inside >> shift) & ((1 << _DIGIT) - 1)
                counts += torch.bincount(digits, minlength=1 << _DIGIT).cpu()
        from_above = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_above, k))
        digit = (1 << _DIGIT) - 1 - place
        k -= int(from_above[place] - counts[digit])
        prefix = digit + lowest if prefix is None else (prefix << _DIGIT) | digit
        shift -= _DIGIT
    assert prefix is not None
    return prefix, k


def _keys(part: Tensor, floor: Tensor | None, wide: torch.dtype) -> Iterator[Tensor]:
    """Integers in the order of the scores, a chunk at a time; above all others at the indices in `floor`."""
    integer, sign = (torch.int64, 63) if wide == torch.float64 else (torch.int32, 31)
    largest = torch.iinfo(integer).max
    for start in range(0, len(part), _CHUNK):
        # Adding 0 makes a copy, and a positive zero of a negative one.
        bits = (part[start : start + _CHUNK].to(wide) + 0.0).view(integer)
        keys = bits ^ ((bits >> sign) & largest)
        if floor is not None:
            first, last = torch.searchsorted(floor, floor.new_tensor([start, start + _CHUNK])).tolist()
            keys[floor[first:last] - start] = largest
        yield keys
