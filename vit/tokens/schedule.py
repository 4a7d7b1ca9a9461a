"""How many patches stay before which layer: a schedule says it as plain counts, which can be written down."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vit.tokens.costs import EncoderCost, Place


class TokenSchedule(ABC):
    """Patches that are left at each layer of an encoder."""

    @abstractmethod
    def counts(self, cost: EncoderCost, place: Place = "before layer") -> tuple[int, ...]:
        """One count a layer, which never rises: the patches that the layer is left with.

        Args:
            cost: says how many layers and patches there are.
            place: where patches go.

        Raises:
            ValueError: a layer would be left without patches, or the schedule does not fit the encoder.
        """


@dataclass(frozen=True)
class Counts(TokenSchedule):
    """The counts themselves.

    Args:
        patches: one count a layer.
    """

    patches: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "patches", tuple(self.patches))

    def counts(self, cost: EncoderCost, place: Place = "before layer") -> tuple[int, ...]:
        """The counts, checked."""
        return checked(self.patches, cost)


@dataclass(frozen=True)
class PerLayer(TokenSchedule):
    """A number of patches goes at each layer: the same one, or one that rises or falls from layer to layer.

    At the k-th of n layers r (1 + slope (2 k / (n - 1) - 1)) go, k from 0; fractions are carried over, so that r n are
    gone in the end. ToMe (arXiv 2210.09461) recommends a falling number, slope -1.

    Args:
        removed: r, patches a layer; may be fractional.
        slope: -1: from 2 r to 0; 0: constant; 1: from 0 to 2 r.
        first: the first layer at which patches go, from 0. Keys and attention are those of the layer before, where
            tokens go before a layer, so that the earliest is 1 for pruners that look at them.
        last: the last such layer; None: the last one there is.
    """

    removed: float
    slope: float = 0.0
    first: int = 1
    last: int | None = None

    def __post_init__(self) -> None:
        if not self.removed >= 0 or not -1 <= self.slope <= 1:
            raise ValueError(f"removed >= 0 and slope in [-1, 1] are needed, got {self.removed} and {self.slope}")

    def counts(self, cost: EncoderCost, place: Place = "before layer") -> tuple[int, ...]:
        """The counts of the layers."""
        at = layer_range(cost, self.first, self.last)
        gone = 0.0
        left = {}
        for index, layer in enumerate(at):
            share = 2 * index / (len(at) - 1) - 1 if len(at) > 1 else 0.0
            gone += self.removed * (1 + self.slope * share)
            left[layer] = cost.patches - math.floor(gone + 0.5)
        return checked(_filled(left, cost), cost)


@dataclass(frozen=True)
class KeepRates(TokenSchedule):
    """At some layers, a share of the patches that are there stays: ceil(share * patches).

    EViT (arXiv 2202.07800) and DynamicViT (arXiv 2106.02034) keep 0.7 at layers 3, 6 and 9 of 12.

    Args:
        rates: layer, from 0 -> share in (0, 1].
    """

    rates: Mapping[int, float]

    def __post_init__(self) -> None:
        wrong = {layer: rate for layer, rate in self.rates.items() if not 0 <= rate <= 1}
        if wrong:
            raise ValueError(f"keep rates are between 0 and 1, got {wrong}")

    def counts(self, cost: EncoderCost, place: Place = "before layer") -> tuple[int, ...]:
        """The counts of the layers."""
        wrong = [layer for layer in self.rates if not 0 <= layer < cost.prunable_layers]
        if wrong:
            raise ValueError(f"patches go at layers 0 to {cost.prunable_layers - 1}, not at {wrong[0]}")
        left, now = {}, cost.patches
        for layer in sorted(self.rates):
            # The tolerance is for rates like 0.7, whose products may come out just above a whole number.
            now = left[layer] = math.ceil(self.rates[layer] * now - 1e-9)
        return checked(_filled(left, cost), cost)


@dataclass(frozen=True)
class Target(TokenSchedule):
    """The most patches whose cost is a share of the dense model's, found exactly: one patch more would not fit.

    Patches go by an equal rate at the layers `at`, or where it is None by an equal number at each layer from `first`,
    until one is left. The rest of the budget is then filled patch by patch, from the last of these layers on backwards.

    Args:
        share: of the cost, in (0, 1].
        of: multiply-adds of the whole model without those of choosing; or tokens, as a mean over the layers.
        at: layers of the stages, from 0; None: all from `first` on.
        first: see above.
    """

    share: float
    of: Literal["macs", "tokens"] = "macs"
    at: tuple[int, ...] | None = None
    first: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")
        if self.at is not None:
            object.__setattr__(self, "at", tuple(sorted(self.at)))

    def counts(self, cost: EncoderCost, place: Place = "before layer") -> tuple[int, ...]:
        """The counts of the layers.

        Raises:
            ValueError: even a single patch from the first of the layers on costs more than that.
        """
        at = layer_range(cost, self.first, None) if self.at is None else list(self.at)
        if not at or not 0 <= at[0] <= at[-1] < cost.prunable_layers:
            raise ValueError(f"patches go at layers 0 to {cost.prunable_layers - 1}, not at {at}")

        def fits(left: Mapping[int, int]) -> bool:
            return self._spent(_filled(left, cost), cost, place) <= self.share * (1 + 1e-12)

        def along(t: float) -> dict[int, int]:
            steps = enumerate(at, start=1)
            if self.at is None:
                return {layer: max(1, math.floor(cost.patches * (1 - t * k))) for k, layer in steps}
            return {layer: max(1, math.floor(cost.patches * (1 - t) ** k)) for k, layer in steps}

        if fits(along(0.0)):
            return _filled(along(0.0), cost)
        if not fits(along(1.0)):
            least = self._spent(_filled(along(1.0), cost), cost, place)
            raise ValueError(
                f"a share of {self.share:g} of the {self.of} cannot be met: one patch from layer {at[0]} on still "
                f"takes {least:.3f}"
            )
        return checked(_filled(_topped_up(along(_bisected(along, fits)), cost.patches, fits), cost), cost)

    def _spent(self, counts: Sequence[int], cost: EncoderCost, place: Place) -> float:
        if self.of == "macs":
            return cost.macs(counts, place) / cost.dense
        return cost.mean_tokens(counts, place) / (cost.prefix + cost.patches)


def checked(counts: Sequence[int], cost: EncoderCost) -> tuple[int, ...]:
    """The counts; raises ValueError unless there is one for each layer, none rises, and none is below 1."""
    if len(counts) != len(cost.layers):
        raise ValueError(f"a schedule has one count a layer: {len(cost.layers)}, got {len(counts)}")
    before = cost.patches
    for layer, count in enumerate(counts):
        if count < 1:
            raise ValueError(f"the schedule leaves layer {layer} {max(count, 0)} of {cost.patches} patches: keep 1")
        if count > before:
            raise ValueError(f"the schedule gives layer {layer} {count} patches, but only {before} come to it")
        before = count
    return tuple(counts)


def layer_range(cost: EncoderCost, first: int, last: int | None) -> list[int]:
    """The layers from `first` to `last`; raises ValueError if there is no such run of layers."""
    end = cost.prunable_layers - 1 if last is None else last
    if not 0 <= first <= end < cost.prunable_layers:
        raise ValueError(f"patches go at layers 0 to {cost.prunable_layers - 1}, not at {first} to {end}")
    return list(range(first, end + 1))


def _filled(left: Mapping[int, int], cost: EncoderCost) -> tuple[int, ...]:
    counts, now = [], cost.patches
    for layer in range(len(cost.layers)):
        now = left.get(layer, now)
        counts.append(now)
    return tuple(counts)


def _bisected(along: Callable[[float], dict[int, int]], fits: Callable[[Mapping[int, int]], bool]) -> float:
    """The smallest t, to double precision, whose counts fit."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(along(middle)) else (middle, high)
    return high


def _topped_up(left: dict[int, int], patches: int, fits: Callable[[Mapping[int, int]], bool]) -> dict[int, int]:
    """Add patches at single layers, the last first, as long as they fit and counts do not rise from layer to layer."""
    at = sorted(left)
    grown = True
    while grown:
        grown = False
        for index in reversed(range(len(at))):
            above = left[at[index - 1]] if index else patches
            more = left | {at[index]: left[at[index]] + 1}
            if left[at[index]] < above and fits(more):
                left, grown = more, True
    return left
