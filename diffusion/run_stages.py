"""What the stages of a diffusion recipe's run depend on, and the data that several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from diffusion.calibrate import Generator, read_prompts
from diffusion.data import Samples
from diffusion.models import LoadedModel
from diffusion.recipe import DiffusionRecipe
from diffusion.sample_file import SAMPLES
from secateur.recipe import RecipeFile, to_plain
from secateur.stages import Stages


def identities(recipe: DiffusionRecipe, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What each stage depends on."""
    held = {field.name: to_plain(getattr(recipe, field.name)) for field in fields(recipe)}
    data = depends_on(recipe, hashes)
    scores = {**data, "units": held["units"], "criterion": repr(recipe.criterion), "budget": held["budget"]}
    recovery = {**scores, "repair": held["repair"], "recovery": held["recovery"]}
    return {"samples": data, "scores": scores, "recovery": recovery}


def depends_on(recipe: DiffusionRecipe, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What every stage depends on: model and calibration, what files hold that these name, and the model's weights."""
    held = {name: to_plain(getattr(recipe, name)) for name in ("model", "calibration")}
    return {"weights": dict(hashes), "prompts": read_prompts(recipe.calibration), **held}


def gathered(stages: Stages, file: RecipeFile[DiffusionRecipe], model: LoadedModel, generator: Generator) -> Samples:
    """The clean latents of a recipe, kept among its stages.

    Raises:
        ValueError: they cannot be gathered, or the model samples latents of another shape: with the recipe's line.
    """
    options = file.recipe.calibration
    # Other noise than the trajectories that scores are taken on.
    draw = lambda count: generator.trajectories(count, seed=options.seed + 1)  # noqa: E731
    with file.blaming("calibration", "data"):
        samples = stages.kept("samples", SAMPLES, lambda: options.data.gather(model, draw))
        found, shape = tuple(samples.latents.shape[1:]), model.prompting.shape(options.size)
        if found != shape:
            raise ValueError(f"these latents are {found}, and the model samples {shape}: give others, or size")
    return samples
