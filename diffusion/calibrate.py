"""What criteria of a recipe look through: trajectories, sets of latents, or a loss over time steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from diffusion.data import Samples, rows_at, to_device
from diffusion.denoiser import Denoiser, without_variance
from diffusion.models import LoadedModel
from diffusion.noising import Noising
from diffusion.recipe import Budget, Calibration, DiffusionRecipe, Model
from diffusion.scores import LatentSet
from diffusion.shipped import RECIPES
from diffusion.taylor import InformativeSteps, PredictionLoss
from diffusion.trajectory import Sampler, Trajectories
from secateur.importance import Random
from secateur.importance.objective import Objective
from secateur.recipe import RecipeFile
from secateur.units import Criterion


def sampling_recipe(model: str, calibration: Calibration) -> DiffusionRecipe:
    """A recipe that samples; what it would prune does not matter."""
    return DiffusionRecipe(Model(model), criterion=Random(), budget=Budget(remove=0.0), calibration=calibration)


@dataclass(frozen=True, eq=False)
class Generator:
    """Trajectories of a model as a recipe samples them.

    Args:
        model: the dense model.
        file: the recipe.
    """

    model: LoadedModel
    file: RecipeFile[DiffusionRecipe]

    def trajectories(
        self,
        count: int,
        *,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Trajectories:
        """So many of them; what is None is as the recipe's calibration has it.

        Raises:
            ValueError: no prompts are given to a model that needs them, a class is unknown, the scheduler is none, or
                guidance is asked of a model without a "no prompt": with the recipe's line.
        """
        options, prompting = self.file.recipe.calibration, self.model.prompting
        scale = options.guidance if guidance is None else guidance
        with self.file.blaming("calibration", "prompts"):
            asked = self.asked() if prompts is None else list(prompts)
            null = None if scale == 1 else prompting.null()
            rows = to_device(prompting.conditions(asked), torch.device("cpu"))
        if scale != 1 and null is None:
            raise ValueError(f"{self.file.place('calibration', 'guidance')}this model has no input for 'no prompt'")
        return Trajectories(
            self.sampler(steps or options.steps),
            prompting.shape(options.size),
            count,
            rows_at(rows, torch.arange(count) % len(asked)),
            null,
            prompting.shared(options.size),
            scale,
            prompting.timestep_scale,
            options.seed if seed is None else seed,
            tuple(asked[index % len(asked)] for index in range(count)),
        )

    def asked(self) -> list[str]:
        """Prompts, or class labels as text; what the model has by default where the recipe names none."""
        options = self.file.recipe.calibration
        return read_prompts(options) or list(self.model.prompting.default())

    def sampler(self, steps: int) -> Sampler:
        """The recipe's scheduler.

        Raises:
            ValueError: it is none.
        """
        options = self.file.recipe.calibration
        with self.file.blaming("calibration", "scheduler"):
            kind = type(self.model.scheduler) if options.scheduler is None else scheduler_class(options.scheduler)
            config = {**self.model.scheduler.config, **options.scheduler_options}
            scheduler = kind.from_config(config)
            timestep_options = self.model.prompting.timestep_options(scheduler, steps, options.size)
            return Sampler(scheduler, steps, options.step_options, timestep_options)


def read_prompts(options: Calibration) -> list[str]:
    """The prompts of a recipe and of its file.

    Raises:
        FileNotFoundError: there is neither such a file, nor a list of this name among the package's files.
    """
    prompts = list(options.prompts)
    if options.prompts_file is not None:
        lines = _prompts_file(options.prompts_file).read_text(encoding="utf-8").splitlines()
        prompts += [line.strip() for line in lines if line.strip()]
    return prompts


def _prompts_file(given: Path) -> Path:
    """The file of that path, or the list that comes with the package under that name."""
    if given.is_file():
        return given
    shipped = {path.name: path for path in sorted(RECIPES.glob("*.txt"))}
    if str(given) not in shipped:
        raise FileNotFoundError(f"{given}: no such file, nor a list that comes with the package ({', '.join(shipped)})")
    return shipped[str(given)]


def scheduler_class(path: str) -> Any:
    """The class of that path.

    Raises:
        ValueError: there is none with `step`, `set_timesteps` and `from_config`.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be imported ({error})") from error
    if not all(hasattr(found, part) for part in ("step", "set_timesteps", "from_config")):
        raise ValueError(f"{path!r} is no scheduler: it needs step, set_timesteps and from_config")
    return found


def calibration_of(criterion: Criterion, generator: Generator, samples: Samples | None) -> Any:
    """What the criterion's `score` asks for by the type of its `calibration`; None where it asks for nothing.

    Args:
        criterion: any of the core, or of diffusion.
        generator: of trajectories.
        samples: clean latents, for losses.

    Raises:
        ValueError: it asks for something else.
    """
    options = generator.file.recipe.calibration
    kinds = wanted(criterion)
    if Trajectories in kinds:
        return generator.trajectories(options.count)
    if LatentSet in kinds:
        drawn = generator.trajectories(options.count)
        seeds = tuple(range(options.count))
        return LatentSet(
            lambda network, each: drawn.sample(network.module, torch.tensor(each)), seeds, options.batch_size
        )
    if Objective in kinds:
        assert samples is not None
        return objective(generator.model, samples, options)
    if kinds:
        raise ValueError(f"{type(criterion).__name__} wants {kinds}, which no recipe of diffusion can give it")
    return None


def needs_data(criterion: Criterion | None) -> bool:
    """Whether a criterion looks through a loss on clean latents."""
    return criterion is not None and Objective in wanted(criterion)


def wanted(criterion: Criterion) -> tuple[Any, ...]:
    """The types that a criterion takes as its calibration, None left out; empty where it takes nothing."""
    names = list(signature(criterion.score).parameters)
    if len(names) < 2:
        return ()
    hint = get_type_hints(type(criterion).score).get(names[1])
    parts = getattr(hint, "__args__", (hint,))
    return tuple(part for part in parts if isinstance(part, type) and part not in (Any, object, type(None)))


def objective(model: LoadedModel, samples: Samples, options: Calibration) -> InformativeSteps:
    """The training loss on one batch of samples, at time steps from little noise to much."""
    device = next(model.network.parameters()).device
    drawn = samples.rows(torch.arange(min(options.batch_size, len(samples))))
    arguments = drawn.arguments(device)
    noising = noising_of(model)

    def predict(target: Any, noisy: Tensor, times: Tensor) -> Tensor:
        return without_variance(Denoiser(target.module)(noisy, times, **arguments), noisy)

    latents = drawn.latents.to(device, next(model.network.parameters()).dtype)
    steps = torch.linspace(0, len(noising) - 1, options.timesteps).round().long().unique()
    # Rectified flows list their time steps from much noise to little.
    steps = steps if float(noising.sigmas[0]) < float(noising.sigmas[-1]) else steps.flip(0)
    return InformativeSteps(PredictionLoss(predict, latents, noising, options.seed), steps, options.threshold)


def noising_of(model: LoadedModel) -> Noising:
    """How the model was trained, its time steps as the network is told them."""
    noising = Noising.of(model.scheduler)
    return Noising(
        noising.alphas, noising.sigmas, noising.timesteps * model.prompting.timestep_scale, noising.prediction
    )
