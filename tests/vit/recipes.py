"""Tiny vision transformers on disk and short recipes for them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.vit.models import random_model
from vit.recipe import Calibration, Judging, Model, VitRecipe
from vit.sources import NoiseImages
from vit.steps import Budget, Static, Step

CALIBRATION = Calibration(images=8, batch_size=4)
JUDGING = Judging(batch_size=4, repeats=1, shown=2)


def save_model(folder: Path, family: str = "vit", **changes: Any) -> Path:
    """A folder of transformers with a tiny model of random weights."""
    model: Any = random_model(family, **changes)
    model.save_pretrained(folder)
    return folder


def recipe(model: Path | str, *steps: Step, **changes: Any) -> VitRecipe:
    """A recipe that takes a second or two; without steps it cuts a third of the multiply-adds by magnitude."""
    given: dict[str, Any] = {
        "model": Model(str(model), device="cpu"),
        "steps": steps or (Step(static=Static(Budget(remove=0.3))),),
        "data": NoiseImages(12),
        "calibration": CALIBRATION,
        "evaluation": JUDGING,
    }
    return VitRecipe(**given | changes)
