"""Weights of any network as units: single weights, N of M, blocks, rows, columns.

`Weights(module, granularity)` is a `Prunable` over the chosen parameters, one group each. Every criterion scores it;
the granularity says what a unit is, and `granularity.allocate` which units stay:

    target = Weights(model, NofM(2, 4))
    keep = target.granularity.allocate(Magnitude().score(target), target.groups(), Budget(share=0.5))
    sparse = target.cut(keep).module

Nothing here holds an index a weight, except blocks of several rows; `keep_top` selects among 100 million weights
without sorting them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from secateur.allocation import UNITS, Budget, allocate, checked_scores
from secateur.selection import keep_top
from secateur.units import Keep, Member, Scores, UnitGroup, check_keep

ParamsFilter = Callable[[str, Tensor], bool]
"""(name, tensor) -> whether its weights are units."""


class Granularity(Protocol):
    """What a unit of a weight is: a frozen dataclass."""

    def view(self, weight: Tensor) -> Tensor:
        """The weight in the shape that `members` refers to: a view, never a copy."""
        ...

    def member(self, name: str, weight: Tensor) -> tuple[int, Member]:
        """How many units the weight has, and the rows of its view that they own.

        Raises:
            ValueError: the weight's shape does not allow it; names the weight.
        """
        ...

    def allocate(self, scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
        """Which units stay."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """Every weight is a unit. All of them compete."""

    def view(self, weight: Tensor) -> Tensor:
        return weight.view(-1)

    def member(self, name: str, weight: Tensor) -> tuple[int, Member]:
        return weight.numel(), Member(name)

    def allocate(self, scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
        return keep_top(scores, groups, budget)


@dataclass(frozen=True)
class NofM:
    """Every weight is a unit; of `m` consecutive ones of a row, `n` stay.

    A row is what makes one output: for (out, in, kh, kw) the in * kh * kw weights in memory order, and its length must
    be a multiple of m. 2 of 4 is what sparse tensor cores run (Mishra et al., Accelerating Sparse Deep Neural Networks,
    arXiv 2104.08378). With m the length of the rows, outputs are compared each within its own row, as Wanda does.

    Args:
        n: how many stay.
        m: of how many.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 <= self.n <= self.m or self.m < 1:
            raise ValueError(f"n of m needs 0 <= n <= m and m >= 1, got {self.n} of {self.m}")

    def view(self, weight: Tensor) -> Tensor:
        return weight.view(-1)

    def member(self, name: str, weight: Tensor) -> tuple[int, Member]:
        length = weight[0].numel() if weight.ndim else 0
        if not length or length % self.m:
            raise ValueError(f"{name!r} has rows of {length} weights, which {self.m} does not divide")
        return weight.numel(), Member(name)

    def allocate(self, scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
        """The best of each m weights: as many as the budget holds, and `n` in the end.

        Raises:
            ValueError: the budget is for less than n of m, or its cost is not "units".
        """
        if budget.cost != UNITS:
            raise ValueError(f"n of m counts weights: its budget is one of {UNITS!r}, got {budget.cost!r}")
        total = sum(group.size for group in groups)
        share = budget.share if budget.share is not None else budget.amount(groups) / max(total, 1)
        count = min(self.m, math.floor(share * self.m * (1 + 1e-9)))
        if count < self.n:
            raise ValueError(f"a share of {share:g} keeps {count} of {self.m}; this granularity needs {self.n}")
        return {group.name: keep_n_of_m(checked_scores(scores, group), count, self.m) for group in groups}


@dataclass(frozen=True)
class Block:
    """Blocks of `height` rows and `width` columns of the weight, its dimensions behind the first flattened.

    Block movement pruning (Lagunas et al. 2021, arXiv 2109.04838) has 32 x 32. Blocks of several rows need an index of
    8 bytes a weight.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"blocks need a height and width of at least 1, got {self.height} x {self.width}")

    def view(self, weight: Tensor) -> Tensor:
        return weight.view(-1, self.width) if self.height == 1 else weight.view(-1)

    def member(self, name: str, weight: Tensor) -> tuple[int, Member]:
        rows, columns = len(weight), weight[0].numel()
        if rows % self.height or columns % self.width:
            raise ValueError(f"{name!r} of {rows} x {columns} does not divide into {self.height} x {self.width} blocks")
        units = weight.numel() // (self.height * self.width)
        if self.height == 1:
            return units, Member(name)
        index = torch.arange(weight.numel(), device=weight.device)
        index = index.view(rows // self.height, self.height, columns // self.width, self.width).transpose(1, 2)
        return units, Member(name, 0, index.reshape(units, -1))

    def allocate(self, scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
        return keep_top(scores, groups, budget)


@dataclass(frozen=True)
class Rows:
    """Units are outputs: slices of the weight along its first dimension."""

    def view(self, weight: Tensor) -> Tensor:
        return weight.view(weight.shape)

    def member(self, name: str, weight: Tensor) -> tuple[int, Member]:
        return len(weight), Member(name)

    def allocate(self, scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
        return allocate(scores, groups, budget)


@dataclass(frozen=True)
class Columns:
    """Units are inputs: slices of the weight along its second dimension."""

    def view(self, weight: Tensor) -> Tensor:
        return weight.view(weight.shape)

    def member(self, name: str, weight: Tensor) -> tuple[int, Member]:
        return weight.shape[1], Member(name, 1)

    def allocate(self, scores: Scores, groups: Sequence[UnitGroup], budget: Budget) -> Keep:
        return allocate(scores, groups, budget)


def matrices(name: str, tensor: Tensor) -> bool:
    """Floating-point tensors of two dimensions or more that hold something: no biases, norms or quantised weights."""
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > 0


class Weights:
    """Chosen parameters of a module, or tensors by name, as units of a granularity: a `Prunable`.

    Its tensors are views of the parameters, in the granularity's shape, so that nothing is copied; call it as you would
    call the module, so that masks act and gradients reach the views. `cut` writes zeros into a copy: the shapes stay,
    as weights that lack single entries are no smaller dense tensors (`secateur.surgery` removes channels).

    Args:
        source: the module, or tensors by name; they are used as they are, in place.
        granularity: what a unit is.
        params: which parameters count; by default those of two dimensions or more.
        min_keep: the fewest units that stay in each parameter (the minimum threshold of arXiv 2209.14624).

    Raises:
        ValueError: no parameter is left, or one does not suit the granularity.
    """

    def __init__(
        self,
        source: nn.Module | Mapping[str, Tensor],
        granularity: Granularity | None = None,
        params: ParamsFilter = matrices,
        min_keep: int = 1,
    ) -> None:
        self.module = source if isinstance(source, nn.Module) else None
        self.granularity: Granularity = granularity or Unstructured()
        self.params, self.min_keep = params, min_keep
        self._source = source
        self._views: dict[str, Tensor] = {}
        self._masks: Mapping[str, Tensor] | None = None
        weights = self.weights()
        if not weights:
            raise ValueError("there is no parameter to prune: the filter passes over all of them")
        for name, weight in weights.items():
            if not weight.is_contiguous():
                raise ValueError(f"{name!r} is not contiguous in memory: call .contiguous() on it first")
        self._groups = tuple(self._group(name, weight) for name, weight in weights.items())

    def _group(self, name: str, weight: Tensor) -> UnitGroup:
        size, member = self.granularity.member(name, weight)
        each = torch.full((1,), weight.numel() / size, dtype=torch.float64)
        return UnitGroup(name, size, (member,), {"params": each.expand(size)}, min(self.min_keep, size))

    def weights(self) -> dict[str, Tensor]:
        """The parameters themselves by name, in their own shapes; a shared one appears once."""
        named = self._source.named_parameters() if isinstance(self._source, nn.Module) else self._source.items()
        return {name: tensor for name, tensor in named if self.params(name, tensor)}

    def tensors(self) -> Mapping[str, Tensor]:
        """Views of the parameters, in the granularity's shape, the same objects each time."""
        for name, weight in self.weights().items():
            view = self._views.get(name)
            if view is None or view.data_ptr() != weight.data_ptr() or view.dtype != weight.dtype:
                self._views[name] = self.granularity.view(weight.detach())
        return self._views

    def attached(self) -> dict[str, Tensor]:
        """As `tensors()`, but differentiable in the module's parameters: for penalties of a loss."""
        return {name: self.granularity.view(weight) for name, weight in self.weights().items()}

    def groups(self) -> Sequence[UnitGroup]:
        return self._groups

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """While the context is open, calls of this object see weights times masks."""
        before, self._masks = self._masks, masks
        try:
            yield
        finally:
            self._masks = before

    def effective(self) -> dict[str, Tensor]:
        """The weights by name in their own shapes, under the masks that are in force; differentiable in `tensors()`."""
        tensors, found = self.tensors(), {}
        for group, (name, weight) in zip(self._groups, self.weights().items(), strict=True):
            view = tensors[name]
            if self._masks is not None:
                view = view * spread(self._masks[group.name].to(view), group.members[0], view)
            found[name] = view.view(weight.shape)
        return found

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While the context is open, the module's parameters are `effective()`, wherever it is called from."""
        if self.module is None:
            raise ValueError("these weights are tensors by name, without a module that could be run")
        if self._masks is None and not any(view.requires_grad for view in self.tensors().values()):
            yield
            return
        effective = {
            id(weight): tensor
            for weight, tensor in zip(self.weights().values(), self.effective().values(), strict=True)
        }
        swapped = [
            (owner, key, parameter)
            for owner in self.module.modules()
            for key, parameter in owner._parameters.items()
            if id(parameter) in effective
        ]
        try:
            for owner, key, parameter in swapped:
                owner._parameters[key] = effective[id(parameter)]  # type: ignore[assignment]
            yield
        finally:
            for owner, key, parameter in swapped:
                owner._parameters[key] = parameter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output."""
        with self.installed():
            return self.module(*args, **kwargs)  # type: ignore[misc]

    def cut(self, keep: Keep) -> Weights:
        """A copy with zeros for all units that go; of the same shapes."""
        check_keep(keep, self._groups)
        source = copy.deepcopy(self._source) if self.module is not None else self._source
        if not isinstance(source, nn.Module):
            source = {name: tensor.detach().clone() for name, tensor in source.items()}
        small = Weights(source, self.granularity, self.params, self.min_keep)
        small.write_zeros(keep)
        return small

    @torch.no_grad()
    def write_zeros(self, keep: Keep) -> None:
        """Set the units that go to 0 in place."""
        for group, view in zip(self._groups, self.tensors().values(), strict=True):
            view.masked_fill_(~spread(keep[group.name].to(view.device), group.members[0], view), 0)


def spread(mask: Tensor, member: Member, tensor: Tensor) -> Tensor:
    """What `fold` sums, the other way round: a value a unit, at the rows that the unit owns.

    Args:
        mask: (units,) of any dtype; differentiable.
        member: the rows.
        tensor: the parameter that `member` names.

    Returns:
        A tensor that broadcasts against `tensor`; 1 (True) in rows that no unit owns.
    """
    along = mask
    if member.rows is not None:
        rows = member.rows.to(mask.device)
        values = mask[:, None].expand(rows.shape).reshape(-1)
        along = mask.new_ones(tensor.shape[member.dim]).index_put((rows.flatten(),), values)
    shape = [1] * tensor.ndim
    shape[member.dim] = -1
    return along.view(shape)


def keep_n_of_m(scores: Float[Tensor, " size"], n: int, m: int) -> Bool[Tensor, " size"]:
    """True for the `n` best of each `m` consecutive scores; among equal ones the lower index wins.

    Raises:
        ValueError: m does not divide their number, or a score is NaN.
    """
    if len(scores) % m:
        raise ValueError(f"{m} does not divide {len(scores)} scores")
    if bool(torch.isnan(scores).any()):
        raise ValueError("scores hold NaN")
    keep = torch.zeros(len(scores) // m, m, dtype=torch.bool, device=scores.device)
    step = max(1, (1 << 22) // m)
    for part, chosen in zip(scores.view(-1, m).split(step), keep.split(step), strict=True):
        best = torch.sort(part, dim=1, descending=True, stable=True).indices[:, :n]
        chosen.scatter_(1, best, True)
    return keep.flatten()
