"""What a recipe did, or would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusion.estimate import Estimate
from diffusion.evaluate import Evaluation
from secateur.report.notebook import table_html
from secateur.surgery.plan import Plan
from secateur.training import FitRecord


@dataclass(frozen=True, slots=True)
class Pruning:
    """What a recipe did.

    Args:
        model: its id.
        component: the part that was pruned.
        criterion: class of what scored the units; None where the recipe names what goes.
        plan: sizes before and after, of one sample, and how many units of each group stay.
        kinds: kind -> (units that stay, units).
        repaired: layers that were solved again.
        recovery: None where nothing was trained.
        evaluation: against the dense model.
        seconds: time by stage of this run; stages that an earlier run had finished take next to none.
        seed: of the calibration.
        recipe: as it was read.
    """

    model: str
    component: str
    criterion: str | None
    plan: Plan
    kinds: dict[str, tuple[int, int]]
    repaired: tuple[str, ...]
    recovery: FitRecord | None
    evaluation: Evaluation
    seconds: dict[str, float]
    seed: int
    recipe: dict[str, Any]

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        from diffusion.tables import pruning_tables  # which names this class

        return table_html(*pruning_tables(self))


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a recipe would do, found on the meta device.

    Args:
        model: its id.
        component: the part that would be pruned.
        plan: sizes before and after, where every group loses the same share; exact where the recipe names what goes.
        kinds: kind -> (units that stay, units).
        estimate: memory and time.
    """

    model: str
    component: str
    plan: Plan
    kinds: dict[str, tuple[int, int]]
    estimate: Estimate

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        from diffusion.tables import pruning_tables  # which names this class

        return table_html(*pruning_tables(self))
