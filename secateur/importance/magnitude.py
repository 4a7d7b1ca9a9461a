"""Magnitude importance: the size of the parameters that a unit owns."""

from __future__ import annotations

from dataclasses import dataclass

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
        elements = {name: tensors[name].detach().abs().float() ** self.power for name in names}
        return {group.name: fold(elements, group) for group in target.groups()}
