"""What a recipe for pruning a diffusion model holds: short YAML, typed, checked before anything is loaded.

    model: {id: fashion-unet}
    units: {kinds: [heads, neurons]}
    criterion: {class_path: diffusion.masks.EcoDiff, init_args: {steps: 400}}
    budget: {remove: 0.2}
    output: out/fashion-unet-ecodiff-20

`secateur.recipe.read_recipe(path, DiffusionRecipe)` reads it, `diffusion.prune.prune` does what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from diffusion.aptp.experts import FineTuning
from diffusion.aptp.train import Aptp
from diffusion.block_removal import BlockRemoval
from diffusion.data import OwnSamples, TrainingData
from diffusion.noising import Weighting
from diffusion.units import Kind
from secateur.allocation import Allocator, allocate
from secateur.recovery.refit import ObsRefit
from secateur.units import Criterion

Dtype = Literal["float32", "bfloat16", "float16"]
Cost = Literal["params", "macs", "bytes", "ms"]


@dataclass(frozen=True)
class Model:
    """Which model is pruned.

    Args:
        id: a folder (a pipeline of diffusers, a single component, or what secateur saved) or a `config.json`, the name
            of a demo model ("fashion-unet"), or a repository of the Hugging Face hub. Looked for in this order.
        component: which part of a pipeline denoises; None: `unet` or `transformer`, whichever it has.
        revision: of the repository.
        variant: of the weights' files ("fp16").
        random_weights: take the configuration alone, and random weights: to try a recipe out, or to measure speed.
        dtype: of the weights.
        device: where the model runs, such as "cpu" or "cuda:1"; None: a GPU where there is one. A dry run does without.

    Raises:
        ValueError: there is no such kind of device.
    """

    id: str
    component: Literal["unet", "transformer"] | None = None
    revision: str | None = None
    variant: str | None = None
    random_weights: bool = False
    dtype: Dtype = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        try:
            runs = torch.device(self.device or "cpu").type != "meta"
        except RuntimeError:
            runs = False
        if not runs:
            raise ValueError(f"device {self.device!r} is none that a model runs on: choose cpu or cuda")


@dataclass(frozen=True)
class Units:
    """What may go.

    Args:
        kinds: see `diffusion.units.Kind`.
        modules: patterns over names of modules; units below one that matches may go, others stay.
        min_keep: the fewest units of a layer that stay; 0 lets a layer lose all.
        floors: pattern over names of groups -> the fewest units of each that stay, in place of `min_keep`.
        drop: patterns over names of whole modules that go, without a criterion or a budget.
        blocks: layers and stages of a UNet that go as in BK-SDM, without a criterion, a budget or `drop`; kinds and
            modules do not matter. What is left loads with plain diffusers.

    Raises:
        ValueError: there are no kinds or patterns, or a floor is negative.
    """

    kinds: tuple[Kind, ...] = ("heads", "neurons")
    modules: tuple[str, ...] = ("*",)
    min_keep: int = 1
    floors: Mapping[str, int] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    blocks: BlockRemoval | None = None

    @property
    def named(self) -> bool:
        """Whether what goes is named, so that nothing is scored."""
        return bool(self.drop) or self.blocks is not None

    def __post_init__(self) -> None:
        if self.drop and self.blocks is not None:
            raise ValueError("units.drop and units.blocks cannot be used together")
        if not self.kinds or not self.modules:
            raise ValueError("units need at least one kind and one module pattern")
        if self.min_keep < 0 or any(floor < 0 for floor in self.floors.values()):
            raise ValueError(f"floors must not be negative, got {self.min_keep} and {dict(self.floors)}")


@dataclass(frozen=True)
class Budget:
    """How much goes.

    Args:
        remove: share, 0 to 1, of the cost that goes.
        limit: the most that the model may cost afterwards, in units of the cost (milliseconds of "ms").
        cost: "params", "bytes", "macs", or "ms": of a forward of the calibration's batch on this machine.
        of: what `remove` is a share of: the whole "model", or the "units" that may go.
        by_kind: kind -> share of the cost of its units that goes; kinds do not compete then.
        allocator: which units of all, given their scores; any function of `secateur.allocation`.

    Raises:
        ValueError: not exactly one of `remove`, `limit` and `by_kind` is given, or a share is out of range.
    """

    remove: float | None = None
    limit: float | None = None
    cost: Cost = "params"
    of: Literal["model", "units"] = "model"
    by_kind: Mapping[str, float] = field(default_factory=dict)
    allocator: Allocator = allocate

    def __post_init__(self) -> None:
        if [self.remove is not None, self.limit is not None, bool(self.by_kind)].count(True) != 1:
            raise ValueError("a budget is one of remove, limit and by_kind")
        shares = [self.remove or 0.0, *self.by_kind.values()]
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(f"shares that go must be at least 0 and below 1, got {shares}")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit must be above 0, got {self.limit}")


@dataclass(frozen=True)
class Calibration:
    """What importance is measured on.

    Args:
        prompts: what is asked for, again and again until there are `count`; a class label a line for models of classes.
            Empty: every class, or what the model comes with.
        prompts_file: the same, a line each, beside `prompts`: a file, or the name of a list that comes with the
            package (photographs.txt). Looked for in this order.
        count: how many trajectories, or latents.
        steps: of the sampler.
        guidance: classifier-free guidance scale; 1: none.
        scheduler: path of a scheduler's class, such as `diffusers.EulerDiscreteScheduler`; None: the model's own.
        scheduler_options: replace settings of its configuration.
        step_options: further arguments of its `step`: {eta: 1.0}.
        batch_size: samples at a time.
        size: height and width of the latents; None: the model's own.
        data: clean latents, for criteria that look through a loss and for recovery.
        timesteps: time steps at which such a loss is taken, evenly spread.
        threshold: Diff-Pruning's: time steps whose loss is a smaller share of the largest are left out; 0 takes all.
        seed: of all that is random.

    Raises:
        ValueError: a number is out of range.
    """

    prompts: tuple[str, ...] = ()
    prompts_file: Path | None = None
    count: int = 64
    steps: int = 20
    guidance: float = 1.0
    scheduler: str | None = None
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    step_options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 16
    size: int | None = None
    data: TrainingData = field(default_factory=OwnSamples)
    timesteps: int = 16
    threshold: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.count, self.steps, self.batch_size, self.timesteps, self.size or 1)
        if min(numbers) < 1 or not 0 <= self.threshold < 1 or self.seed < 0:
            raise ValueError(
                "count, steps, batch_size, timesteps and size of at least 1, a threshold in [0, 1) and a seed of at "
                f"least 0 are needed, got {numbers}, {self.threshold} and {self.seed}"
            )


@dataclass(frozen=True)
class Distil:
    """What the dense model teaches (BK-SDM, arXiv 2305.15798, has all three of weight 1).

    Args:
        outputs: weight of the difference of the outputs.
        blocks: weight of the difference of what the blocks give.
        task: weight of the loss on the data.

    Raises:
        ValueError: a weight is negative, or all are 0.
    """

    outputs: float = 1.0
    blocks: float = 0.0
    task: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.outputs, self.blocks, self.task)
        if not (min(weights) >= 0 and max(weights) > 0):
            raise ValueError(f"weights of at least 0, and one above 0, are needed, got {weights}")


@dataclass(frozen=True)
class Adapters:
    """Low-rank updates instead of whole weights; they are merged in the end.

    Args:
        rank: of the updates.
        alpha: their scale is alpha / rank.

    Raises:
        ValueError: the rank is below 1, or alpha not above 0.
    """

    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"a rank of at least 1 and alpha above 0 are needed, got {self.rank} and {self.alpha}")


@dataclass(frozen=True)
class Recovery:
    """How what is left is trained.

    Args:
        steps: optimiser steps; 0: none.
        batch_size: samples of a step.
        accumulate: parts that a step's samples go through the network in, one after another: memory is that of one.
        rate: learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: steps in which the rate grows; it then falls as a cosine, or stays with `constant`.
        constant: whether the rate stays.
        ema: decay of the average of the weights that is kept; None: the weights themselves.
        clip_norm: greatest norm of the gradient.
        drop: share of the samples that are trained without their prompt.
        weighting: of the time steps; None: the error of what the model predicts.
        distil: what the dense model teaches; None: nothing.
        adapters: None: all weights are trained.
        validate_every: steps between validations, on a tenth of the data; the best weights are kept. None: no
            validation.

    Raises:
        ValueError: a number is out of range, or a step's samples do not divide into equal parts.
    """

    steps: int = 0
    batch_size: int = 16
    accumulate: int = 1
    rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 0
    constant: bool = False
    ema: float | None = None
    clip_norm: float | None = 1.0
    drop: float = 0.1
    weighting: Weighting | None = None
    distil: Distil | None = None
    adapters: Adapters | None = None
    validate_every: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or not self.rate > 0 or self.warmup < 0 or not 0 <= self.drop <= 1:
            raise ValueError(
                "steps and warmup of at least 0, batch_size of at least 1, a rate above 0 and drop in [0, 1] are "
                f"needed, got {self.steps}, {self.warmup}, {self.batch_size}, {self.rate} and {self.drop}"
            )
        if not self.weight_decay >= 0 or (self.clip_norm is not None and not self.clip_norm > 0):
            raise ValueError(
                "weight_decay of at least 0, and clip_norm above 0 or null, are needed, got "
                f"{self.weight_decay} and {self.clip_norm}"
            )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema, a decay, must be at least 0 and below 1, got {self.ema}")
        if self.validate_every is not None and self.validate_every < 1:
            raise ValueError(f"validate_every must be at least 1, or null, got {self.validate_every}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} does not divide into {self.accumulate} equal parts")

    @property
    def micro_batch(self) -> int:
        """Samples that go through the network at a time."""
        return self.batch_size // self.accumulate


@dataclass(frozen=True)
class ExpertTraining:
    """A router that sends each prompt to one of several pruned networks: APTP (arXiv 2406.12042).

    Args:
        pruning: training of the router, and what its experts cost.
        tuning: of each expert on its own prompts, with the dense network as its teacher.
        baseline: whether one network of the same cost for all prompts is made in the same way, to compare with.
    """

    pruning: Aptp = field(default_factory=Aptp)
    tuning: FineTuning = field(default_factory=FineTuning)
    baseline: bool = True


@dataclass(frozen=True)
class Judging:
    """How the result is measured, against the dense model on the same seeds.

    Args:
        samples: how many.
        steps: of the sampler; None: as in calibration.
        guidance: None: as in calibration.
        prompts: None: as in calibration.
        first_seed: samples have this seed and the next ones, none of which calibration sees.
        batch_size: samples at a time.
        shown: pictures of each model on the page.
        repeats: timed forwards.
        judge: network whose features distances are taken on, and which tells classes, with real pictures of the same:
            those of the demo models; None: no distances.

    Raises:
        ValueError: a number is out of range.
    """

    samples: int = 16
    steps: int | None = None
    guidance: float | None = None
    prompts: tuple[str, ...] | None = None
    first_seed: int = 1_000_000
    batch_size: int = 16
    shown: int = 16
    repeats: int = 5
    judge: Literal["digits", "fashion"] | None = None

    def __post_init__(self) -> None:
        numbers = (self.samples, self.batch_size, self.shown, self.repeats)
        if min(numbers) < 1:
            raise ValueError(f"samples, batch_size, shown and repeats must be at least 1, got {numbers}")
        if (self.steps is not None and self.steps < 1) or self.first_seed < 0:
            raise ValueError(
                "steps of at least 1 or null, and first_seed of at least 0, are needed, got "
                f"{self.steps} and {self.first_seed}"
            )


@dataclass(frozen=True)
class DiffusionRecipe:
    """A whole run: what is pruned, by what, how far, how it is mended, measured and where it goes.

    Args:
        model: which model.
        units: what may go.
        criterion: scores units: a class of `secateur.importance`, `diffusion.masks.EcoDiff`,
            `diffusion.scores.LatentShift`, `diffusion.greedy_shift.GreedyLatentShift`, `diffusion.taylor.DiffPruning`,
            or one of your own.
        budget: how much goes.
        calibration: what importance is measured on.
        experts: prompts are routed to pruned networks; then there is neither a criterion, nor a budget, nor any other
            training, and the result is a folder for `diffusion.aptp.serving.Routed`.
        repair: least-squares update of the layers that read cut units, on the calibration's trajectories; None: none.
        recovery: training.
        evaluation: how the result is measured.
        output: folder of the result; the command's `-o` overrides it.

    Raises:
        ValueError: there is not exactly one of a criterion with a budget, something to drop, and experts; experts with
            repair or recovery; a kind of `by_kind` is none of the units'.
    """

    model: Model
    units: Units = field(default_factory=Units)
    criterion: Criterion | None = None
    budget: Budget | None = None
    calibration: Calibration = field(default_factory=Calibration)
    experts: ExpertTraining | None = None
    repair: ObsRefit | None = None
    recovery: Recovery = field(default_factory=Recovery)
    evaluation: Judging = field(default_factory=Judging)
    output: Path | None = None

    def __post_init__(self) -> None:
        scored = self.criterion is not None and self.budget is not None
        ways = [self.units.named, scored, self.experts is not None]
        if ways.count(True) != 1 or (self.criterion is None) != (self.budget is None):
            raise ValueError(
                "a recipe needs one of a criterion and a budget, units.drop or units.blocks, or experts, and not both"
            )
        if self.experts is not None and (self.repair is not None or self.recovery.steps):
            raise ValueError("experts are trained by experts.tuning: leave out repair, and recovery.steps")
        unknown = sorted(set(self.budget.by_kind if self.budget else ()) - set(self.units.kinds))
        if unknown:
            raise ValueError(f"budget.by_kind names {unknown[0]!r}, which is none of units.kinds {self.units.kinds}")
