"""Tiny pipelines on disk and short recipes for them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler

from diffusion.data import OwnSamples
from diffusion.pipeline import ClassToImage
from diffusion.recipe import Budget, Calibration, DiffusionRecipe, Judging, Model
from secateur.importance import Magnitude
from tests.diffusion.models import random_model

SHORT = Calibration(count=4, steps=2, batch_size=4, timesteps=2, data=OwnSamples(8, 8))
JUDGING = Judging(samples=4, batch_size=4, repeats=1)


def save_dit(folder: Path) -> Path:
    """A pipeline folder of a tiny transformer with random weights."""
    scheduler = DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction")
    ClassToImage(scheduler, transformer=random_model("dit", out_channels=1)).save_pretrained(folder)
    return folder


def recipe(model: Path | str, **changes: Any) -> DiffusionRecipe:
    """A recipe that takes a second or two."""
    given: dict[str, Any] = {
        "model": Model(str(model), device="cpu"),
        "criterion": Magnitude(),
        "budget": Budget(remove=0.1),
        "calibration": SHORT,
        "evaluation": JUDGING,
    }
    return DiffusionRecipe(**given | changes)
