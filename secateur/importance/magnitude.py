"""Magnitude importance: the size of the parameters that a unit owns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.maths import reject_nan
from secateur.units import Prunable, Scores, UnitGroup, fold

_PIECE = 1 << 18
"""Units that are looked at at a time."""
_INDEX = 0xFFFFFFFF


@dataclass(frozen=True)
class Magnitude:
    """Sum of |w|^power over the parameters that a unit owns.

    With `allocate` over single weights this is global magnitude pruning (Gupta et al., arXiv 2209.14624).

    Args:
        power: 1 for the L1 norm, 2 for the squared L2 norm.
        params: names of the parameters that count; None counts all that the unit owns.
    """

    power: float = 1.0
    params: tuple[str, ...] | None = None

    def score(self, target: Prunable, calibration: object = None) -> Scores:
        """(size,) scores of each group; the calibration is not used.

        Raises:
            ValueError: `params` names a parameter that the target lacks.
        """
        elements = self.elements(target)
        return {group.name: fold(elements, group) for group in target.groups()}

    def elements(self, target: Prunable) -> Mapping[str, Tensor]:
        """Parameter name -> |w|^power, float32, made when it is asked for.

        Raises:
            ValueError: `params` names a parameter that the target lacks.
        """
        tensors = target.tensors()
        names = list(tensors) if self.params is None else list(self.params)
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"no parameters {missing}; the target has {sorted(tensors)}")
        return _WhenAsked({name: tensors[name].detach() for name in names}, self._of)

    def _of(self, tensor: Tensor) -> Tensor:
        size = tensor.abs().float()
        return size if self.power == 1 else size.pow_(self.power)


@dataclass(frozen=True)
class Lamp:
    """Layer-adaptive magnitude: a unit's share of the energy of all units of its layer that are no smaller.

    score(u) = e_u / sum of e_v over v at or before u in descending order, where e is the sum of w^2 over the unit. It
    is the distortion, relative to the layer, of removing u after all smaller ones, to be compared over all layers (Lee
    et al. 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning, arXiv 2010.07611, eq. 4). The largest unit of
    each layer scores 1, so none empties while as many units stay as there are layers. Of equal units the lower index
    comes first, and scores higher.

    With `scope`, groups that it maps to one name are one layer: DIMAP's modules, in which queries, keys and values are
    compared with one another (He et al. 2024, arXiv 2404.13648).

    Args:
        scope: group name -> name of its layer; None: each group is its own.
        params: names of the parameters that count; None counts all that the unit owns.
    """

    scope: Callable[[str], str] | None = None
    params: tuple[str, ...] | None = None

    def score(self, target: Prunable, calibration: object = None) -> Scores:
        """(size,) float32 scores in [0, 1] of each group; the calibration is not used.

        Besides the scores, it holds 8 bytes a unit of one layer at a time.

        Raises:
            ValueError: `params` names a parameter that the target lacks, or a weight is NaN.
        """
        elements = Magnitude(2.0, self.params).elements(target)
        layers: dict[str, list[UnitGroup]] = {}
        for group in target.groups():
            layers.setdefault(self.scope(group.name) if self.scope else group.name, []).append(group)
        scores: Scores = {}
        for groups in layers.values():
            scores |= _shares_of_layer(elements, groups)
        return {group.name: scores[group.name] for group in target.groups()}


def _shares_of_layer(elements: Mapping[str, Tensor], groups: Sequence[UnitGroup]) -> Scores:
    energies = [fold(elements, group) for group in groups]
    shares = _shares(energies[0] if len(energies) == 1 else torch.cat(energies))
    return dict(zip([group.name for group in groups], shares.split([group.size for group in groups]), strict=True))


def _shares(energies: Tensor) -> Tensor:
    """(units,) shares of float32 energies that are not negative, in the place of the energies."""
    ascending, total = _ordered(energies), 0.0
    for start in reversed(range(0, len(ascending), _PIECE)):
        piece = ascending[start : start + _PIECE].flip(0)
        values = (piece >> 32).int().view(torch.float32).double()
        running = values.cumsum(0) + total
        total = float(running[-1])
        index = len(ascending) - 1 - (piece & _INDEX)
        energies[index.to(energies.device)] = (values / running.clamp_min(torch.finfo(torch.float64).tiny)).to(energies)
    return energies


def _ordered(energies: Tensor) -> Tensor:
    """(units,) int64 ascending on the CPU: a float's bits, whose order is its own, above the index from behind.

    Of equal energies the lower index comes last. It is sorted in place, which indices beside the values could not be.
    """
    reject_nan(energies)
    keys = energies.cpu().view(torch.int32).long()
    for start, piece in zip(range(0, len(keys), _PIECE), keys.split(_PIECE), strict=True):
        piece.bitwise_left_shift_(32).bitwise_or_(len(keys) - 1 - torch.arange(start, start + len(piece)))
    keys.numpy().sort()
    return keys


@dataclass(frozen=True)
class _WhenAsked(Mapping[str, Tensor]):
    """Element scores that are made when they are asked for, so that those of one parameter are alive at a time."""

    tensors: Mapping[str, Tensor]
    make: Callable[[Tensor], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.make(self.tensors[name])

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
