"""What a recipe did, or would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.report.notebook import table_html
from secateur.surgery.plan import Size
from secateur.training import FitRecord
from vit.choose import StepPlan
from vit.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class Pruning:
    """What a recipe did.

    Args:
        model: its id.
        dense: size of the model as it was, multiply-adds of one image.
        steps: the model behind each step.
        recoveries: of the `recover` and `slim` steps, in their order.
        evaluation: of the model behind each step, against the dense one.
        seconds: time by stage of this run; stages that an earlier run had finished take next to none.
        seed: of the calibration.
        recipe: as it was read.
    """

    model: str
    dense: Size
    steps: tuple[StepPlan, ...]
    recoveries: tuple[FitRecord, ...]
    evaluation: Evaluation
    seconds: dict[str, float]
    seed: int
    recipe: dict[str, Any]

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        from vit.tables import pruning_tables  # which names this class

        return table_html(*pruning_tables(self))


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a recipe would do, found on the meta device.

    Args:
        model: its id.
        dense: size of the model as it is, multiply-adds of one image.
        steps: the model behind each step, where every group loses the same share.
    """

    model: str
    dense: Size
    steps: tuple[StepPlan, ...]

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        from vit.tables import pruning_tables  # which names this class

        return table_html(*pruning_tables(self))
