"""Magnitude importance: the size of the parameters that a unit owns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.maths import order_by_score
from secateur.units import Prunable, Scores, fold


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
        tensors = target.tensors()
        names = list(tensors) if self.params is None else list(self.params)
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"no parameters {missing}; the target has {sorted(tensors)}")
        elements = _WhenAsked({name: tensors[name].detach() for name in names}, self._of)
        return {group.name: fold(elements, group) for group in target.groups()}

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
        """(size,) float64 scores in [0, 1] of each group; the calibration is not used.

        Raises:
            ValueError: `params` names a parameter that the target lacks, or a weight is NaN.
        """
        energies = Magnitude(2.0, self.params).score(target)
        layers: dict[str, list[str]] = {}
        for name in energies:
            layers.setdefault(self.scope(name) if self.scope else name, []).append(name)
        scores: Scores = {}
        for names in layers.values():
            parts = _shares(torch.cat([energies[name] for name in names])).split([len(energies[n]) for n in names])
            scores |= dict(zip(names, parts, strict=True))
        return {name: scores[name] for name in energies}


def _shares(energies: Tensor) -> Tensor:
    order = order_by_score(energies)
    descending = energies[order].double()
    shares = torch.empty_like(descending)
    shares[order] = descending / descending.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return shares


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
