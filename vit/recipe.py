"""What a recipe for pruning a vision transformer holds: short YAML, typed, checked before anything is loaded.

    model: {id: fashion-vit}
    data: {class_path: vit.sources.DemoImages}
    steps:
      - static: {criterion: {class_path: secateur.importance.Taylor}, budget: {remove: 0.3}}
      - recover: {steps: 300, distil: {outputs: 1.0}}
      - tokens:
          pruner: {class_path: vit.tokens.TokenMerging}
          schedule: {class_path: vit.tokens.Target, init_args: {share: 0.7}}
    output: out/fashion-vit-small

`secateur.recipe.read_recipe(path, VitRecipe)` reads it, `vit.prune.prune` does what it says, in that order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vit.sources import DemoImages, ImageSource
from vit.steps import Step

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Model:
    """Which model is pruned.

    Args:
        id: a folder of transformers (or what secateur saved) or a `config.json`, the name of a demo model
            ("fashion-vit"), or a repository of the Hugging Face hub. Looked for in this order.
        architecture: class of transformers; None: the one that the configuration names.
        revision: of the repository.
        random_weights: take the configuration alone, and random weights: to try a recipe out, or to measure speed.
        dtype: of the weights.
        device: where the model runs; None: a GPU where there is one.
    """

    id: str
    architecture: str | None = None
    revision: str | None = None
    random_weights: bool = False
    dtype: Dtype = "float32"
    device: str | None = None


@dataclass(frozen=True)
class Calibration:
    """What importance is measured on: images of the training part, the first of a shuffle.

    Args:
        images: how many.
        batch_size: images at a time; it matters to criteria that take absolutes or squares batch by batch.
        seed: of the shuffle, and of all that is random.

    Raises:
        ValueError: a number is out of range.
    """

    images: int = 256
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.images, self.batch_size) < 1 or self.seed < 0:
            raise ValueError(
                f"images and batch_size of at least 1 and a seed of at least 0 are needed, got {self.images}, "
                f"{self.batch_size} and {self.seed}"
            )


@dataclass(frozen=True)
class Judging:
    """How results are measured.

    Args:
        batch_size: images at a time, also while throughput is measured.
        threads: that torch may use while it is; None: as many as it uses.
        repeats: timed forwards.
        shown: images on the page.

    Raises:
        ValueError: a number is out of range.
    """

    batch_size: int = 32
    threads: int | None = 1
    repeats: int = 5
    shown: int = 6

    def __post_init__(self) -> None:
        numbers = (self.batch_size, self.threads or 1, self.repeats, self.shown)
        if min(numbers) < 1:
            raise ValueError(f"batch_size, threads, repeats and shown must be at least 1, got {numbers}")


@dataclass(frozen=True)
class VitRecipe:
    """A whole run: what is pruned, how, in which order, how it is measured and where it goes.

    Args:
        model: which model.
        steps: what is done to it, one after another.
        data: images: to score and train with, to choose with, to judge by.
        calibration: what importance is measured on.
        evaluation: how results are measured.
        output: folder of the result; the command's `-o` overrides it.

    Raises:
        ValueError: there is no step, or one cannot follow another.
    """

    model: Model
    steps: tuple[Step, ...]
    data: ImageSource = field(default_factory=DemoImages)
    calibration: Calibration = field(default_factory=Calibration)
    evaluation: Judging = field(default_factory=Judging)
    output: Path | None = None

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a recipe needs a step")
        names = [step.name for step in self.steps]
        for name in ("tokens", "blocks"):
            if names.count(name) > 1:
                raise ValueError(f"there can be one step of {name}, got {names.count(name)}")
        for index, step in enumerate(self.steps):
            before = set(names[:index])
            if "blocks" in before and step.name in ("static", "greedy", "slim", "sparse"):
                raise ValueError(f"steps[{index}] is {step.name}, behind blocks: put blocks after it")
            if "tokens" in before and step.name in ("greedy", "slim"):
                raise ValueError(f"steps[{index}] is {step.name}, behind tokens: let tokens go after it")
            learned = step.tokens is not None and step.tokens.learned is not None
            if learned and "recover" not in names[index + 1 :]:
                raise ValueError(f"steps[{index}]: tokens.learned needs training: add a recover step behind it")
            if step.recover and step.recover.distil and step.recover.distil.features and "tokens" in before:
                raise ValueError(f"steps[{index}]: layers' streams cannot be compared while tokens go: set features 0")
