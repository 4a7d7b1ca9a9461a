"""A recipe carried out: load, do its steps one after another, evaluate, save.

Scores, searches and trainings keep what they made in the folder of the result, so that a run which was stopped goes on
where it was.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.allocation import Budget as Limit
from secateur.console import Report, silent, stretch
from secateur.evaluation.evaluator import write
from secateur.evaluation.run import Start
from secateur.files import replacing_file
from secateur.granularity import Weights
from secateur.greedy import prune_greedily
from secateur.importance.objective import Disturbed, Objective, Supervised
from secateur.recipe import RecipeFile, recipe_of, to_plain
from secateur.report.record import Steps
from secateur.stages import SCORES, StageKind, Stages, on_cpu
from secateur.surgery.cut import cut_module
from secateur.surgery.manifest import cuts_from_json, cuts_to_json, hash_weights
from secateur.surgery.network import Network
from secateur.tensor_files import TensorFormat
from secateur.training import FitRecord, generator_at
from vit.alignment import embedding_of
from vit.choose import (
    StepPlan,
    Target,
    choose,
    demo_folder,
    find_target,
    greedy_stages,
    kept_units,
    size_of,
    token_plan,
    tokens_of,
    units_of,
)
from vit.data import ImageBatches
from vit.dimap import linear_weights
from vit.evaluate import Evaluation, Pictures, evaluate
from vit.images import PREPROCESSOR
from vit.models import LoadedModel, load_model
from vit.outcome import DryRun, Pruning
from vit.pruned import PrunedModel, save
from vit.recipe import Model, VitRecipe
from vit.record import metrics_of, pruning_record
from vit.recovering import finished, recover
from vit.slimsam import SlimSam
from vit.sources import ImageParts, check_images, has_classes
from vit.steps import Blocks, Greedy, Recovery, Sparse, Static, Step
from vit.tasks.task import logits_of

CUTS: StageKind[Mapping[str, Any]] = StageKind(
    TensorFormat("secateur cuts", 1, article=""), lambda cuts: ({}, cuts), lambda _, cuts: cuts
)


def dry_run(recipe: VitRecipe | RecipeFile[VitRecipe]) -> DryRun:
    """What a recipe would do: no weights are loaded, and of models in `vit.models.PUBLISHED` nothing at all.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the recipe cannot be carried out: with its line.
    """
    file = recipe_of(recipe)
    target = find_target(file)
    return DryRun(file.recipe.model.id, target.size, target.steps)


def prune(
    recipe: VitRecipe | RecipeFile[VitRecipe], output: Path | None = None, report: Report = silent
) -> tuple[PrunedModel, Pruning]:
    """Carry a recipe out; a run that was stopped goes on.

    The folder gets what `vit.load` reads, `recipe.yaml`, `results.json` and a page with pictures.

    Args:
        recipe: what to do.
        output: folder of the result; None: the recipe's.
        report: told how far it is.

    Returns:
        what is left of the model, and the record.

    Raises:
        FileNotFoundError: there is no such model, or no images.
        ValueError: the recipe cannot be carried out: nothing is loaded then; weights or images do not fit; losses are
            not finite.
    """
    file = recipe_of(recipe)
    folder = output or file.recipe.output
    if folder is None:
        raise ValueError("no folder for the result: give -o, or output in the recipe")
    report(0.0, "planning")
    return _Run(file, find_target(file), Path(folder), report).whole()


class _Run:
    """One run, step by step."""

    def __init__(self, file: RecipeFile[VitRecipe], target: Target, output: Path, report: Report) -> None:
        self.file, self.recipe, self.target, self.output, self.report = file, file.recipe, target, output, report
        self.start, self.steps = Start.now(), Steps()
        with self.steps("load"):
            report(0.02, "loading")
            self.model = load(file.recipe.model)
            with file.blaming("data"):
                self.images = self._gathered(self.model)
        self.stages = Stages.within(output, _identities(file.recipe, self.model.network))
        self.seed = file.recipe.calibration.seed
        self.recoveries: list[FitRecord] = []

    def _gathered(self, model: LoadedModel) -> ImageParts:
        parts = self.recipe.data.gather(model)
        for part in (parts.training, parts.validation, parts.test):
            check_images(part, model)
        return parts

    def whole(self) -> tuple[PrunedModel, Pruning]:
        self.file.save(self.output)
        pruned = PrunedModel(Network(copy.deepcopy(self.model.network), (), cuts=self.model.cuts))
        plans: list[StepPlan] = []
        candidates: dict[str, nn.Module] = {}
        share = 0.8 / len(self.recipe.steps)
        for index, step in enumerate(self.recipe.steps):
            report = stretch(self.report, 0.05 + index * share, 0.05 + (index + 1) * share)
            report(0.0, step.name)
            with self.steps(step.name), self.file.blaming("steps", index, step.name):
                pruned, units = self.done(pruned, step, index, report)
            plans.append(StepPlan(step.name, size_of(pruned), units, tokens_of(pruned)))
            candidates[label(step.name, candidates)] = pruned.runnable()
        with self.steps("evaluate"):
            evaluation, pictures = self.evaluated(candidates)
        record = self.record(plans, evaluation)
        with self.steps("save"):
            self.report(0.98, "saving")
            self.save(pruned, record)
        from vit.report import pruning_page  # matplotlib takes a second to import

        write(pruning_record(record, self.output, self.start), pruning_page(record, pictures), self.output)
        self.stages.clear()
        return pruned, record

    def done(
        self, pruned: PrunedModel, step: Step, index: int, report: Report
    ) -> tuple[PrunedModel, dict[str, tuple[int, int]]]:
        """What a step makes of a model, and which units it left."""
        if step.static is not None:
            return self.static(pruned, step.static, index)
        if step.greedy is not None:
            return self.greedy(pruned, step.greedy, index)
        if step.slim is not None:
            return self.slim(pruned, step.slim, index, report)
        if step.blocks is not None:
            return self.blocks(pruned, step.blocks), {}
        if step.sparse is not None:
            return self.sparse(pruned, step.sparse), {}
        if step.tokens is not None:
            return replace(pruned, tokens=token_plan(step.tokens, pruned.network.module)), {}
        assert step.recover is not None
        return self.recovered(pruned, step.recover, index, report), {}

    def static(
        self, pruned: PrunedModel, options: Static, index: int
    ) -> tuple[PrunedModel, dict[str, tuple[int, int]]]:
        network = units_of(pruned, options.kinds, options.modules, options.min_keep)
        reduced = None if pruned.tokens is None else pruned.tokens.on(network.module)
        try:
            score = lambda: options.criterion.score(network, self.objective)  # noqa: E731
            scores = on_cpu(self.stages.kept(f"scores-{index}", SCORES, score))
        finally:
            if reduced is not None:
                reduced.release()
        keep = choose(network, scores, options, self._outputs)
        units = {name: (int(mask.sum()), len(mask)) for name, mask in keep.items()}
        return pruned.with_network(network.cut(keep)), units

    def greedy(
        self, pruned: PrunedModel, options: Greedy, index: int
    ) -> tuple[PrunedModel, dict[str, tuple[int, int]]]:
        kinds = tuple(dict.fromkeys(kind for stage in options.stages for kind in stage.kinds))
        # Cuts that are kept are those of the search alone, in the numbering of the model that it began with.
        network = units_of(replace(pruned, network=Network(pruned.network.module, ())), kinds)

        def search() -> dict[str, Any]:
            stages = greedy_stages(network, options)
            small, _ = prune_greedily(network, stages, self._loss, options.criterion, self.objective)
            return cuts_to_json(small)

        found = cuts_from_json(self.stages.kept(f"search-{index}", CUTS, search), network.module, self.output)
        small = Network(cut_module(network.module, found), (), cuts=pruned.network.cuts.then(found))
        return pruned.with_network(small), kept_units(network, units_of(pruned.with_network(small), kinds, min_keep=0))

    def slim(
        self, pruned: PrunedModel, method: SlimSam, index: int, report: Report
    ) -> tuple[PrunedModel, dict[str, tuple[int, int]]]:
        images, size = self.images, self.recipe.calibration.batch_size
        device = _device(pruned.network.module)
        held = [batch["pixel_values"].to(device) for batch in images.validation.subset(slice(4 * size)).in_order(size)]
        before = units_of(pruned, ("embedding", method.attention, "neurons"))
        slim = method.fit(
            pruned.network.module,
            ImageBatches(images.training, size, self.seed),
            [inputs for inputs, _ in self.batches],
            held,
            work=self.stages.folder / f"slim-{index}",
            identity={"step": self.stages.identity(f"recover-{index}")},
            seed=self.seed,
            report=report,
        )
        self.recoveries += slim.records
        small = Network(slim.network.module, (), cuts=pruned.network.cuts.then(slim.network.cuts))
        return pruned.with_network(small), kept_units(before, slim.network)

    def blocks(self, pruned: PrunedModel, options: Blocks) -> PrunedModel:
        batches = [{"pixel_values": inputs} for inputs, _ in self.batches]
        limit = Limit(share=1 - options.remove, cost=options.cost)
        objective = self.objective if options.weigh or options.method.score is not None else None
        found = options.method.prune(pruned.network.module, batches, limit, objective)
        network = Network(found.masked, (), cuts=pruned.network.cuts)
        dense_from = options.method.dense_from
        return replace(pruned, network=network, blocks=found.keep, dense_from=dense_from, sparse=True)

    def sparse(self, pruned: PrunedModel, options: Sparse) -> PrunedModel:
        module = pruned.network.module
        target = Weights(module, options.granularity, linear_weights(module), min_keep=0)
        scores = options.criterion.score(target, self.objective)
        keep = target.granularity.allocate(scores, target.groups(), Limit(share=1 - options.remove))
        small = target.cut(keep).module
        assert small is not None
        return replace(pruned, network=Network(small, (), cuts=pruned.network.cuts), sparse=True)

    def recovered(self, pruned: PrunedModel, options: Recovery, index: int, report: Report) -> PrunedModel:
        record = recover(
            pruned,
            self.model.network,
            self.images,
            options,
            checkpoint=self.stages.checkpoint(f"recover-{index}"),
            seed=self.seed,
            report=report,
        )
        self.recoveries.append(record)
        if pruned.tokens is None or any(step.recover for step in self.recipe.steps[index + 1 :]):
            return pruned
        return replace(pruned, tokens=replace(pruned.tokens, pruner=finished(pruned.tokens.pruner)))

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Images to score with, and their labels, on the model's device."""
        options, device = self.recipe.calibration, _device(self.model.network)
        training = self.images.training
        chosen = torch.randperm(len(training), generator=generator_at(options.seed, 0))[: options.images]
        return [
            (batch["pixel_values"].to(device), batch["labels"].to(device))
            for batch in training.subset(chosen).in_order(options.batch_size)
        ]

    @cached_property
    def objective(self) -> Objective:
        """What criteria look through: the loss on labels, or for models without classes the disturbed embedding."""
        if has_classes(self.model.network):
            return Supervised(self.batches, lambda output, labels: functional.cross_entropy(logits_of(output), labels))
        return Disturbed([inputs for inputs, _ in self.batches], seed=self.seed, read=embedding_of)

    @torch.no_grad()
    def _outputs(self, target: Any) -> Tensor:
        return torch.cat([embedding_of(target(inputs)) for inputs, _ in self.batches])

    def _loss(self, target: Any) -> float:
        """What a greedy search keeps low: the loss on labels, or the error of the embedding."""
        if has_classes(self.model.network):
            losses = list(self.objective.losses(target))
            return float(torch.stack(losses).mean())
        return float((self._outputs(target) - self._dense_outputs).square().mean())

    @cached_property
    def _dense_outputs(self) -> Tensor:
        return self._outputs(self.model.network)

    def evaluated(self, candidates: Mapping[str, nn.Module]) -> tuple[Evaluation, Pictures]:
        options = self.recipe.evaluation
        models = (self.model.network, *candidates.values())
        identity = {
            "weights": [hash_weights(model) for model in models],
            "recipe": to_plain(self.recipe),
            "images": self.images.test.signature(),
            "secateur": version("secateur"),
        }
        return evaluate(
            self.model.network,
            candidates,
            self.images.test,
            batch_size=options.batch_size,
            threads=options.threads,
            repeats=options.repeats,
            shown=options.shown,
            report=stretch(self.report, 0.85, 0.97),
            store=self.stages.chunks(),
            identity=identity,
        )

    def record(self, plans: list[StepPlan], evaluation: Evaluation) -> Pruning:
        return Pruning(
            self.recipe.model.id,
            self.target.size,
            tuple(plans),
            tuple(self.recoveries),
            evaluation,
            self.steps.seconds,
            self.seed,
            to_plain(self.recipe),
        )

    def save(self, pruned: PrunedModel, record: Pruning) -> None:
        metrics = metrics_of(record.evaluation.candidates[-1], record.evaluation)
        save(pruned, self.output, dense=self.model.network, recipe=record.recipe, metrics=metrics)
        if self.model.preprocessor is not None and self.model.preprocessor.parent.resolve() != self.output.resolve():
            with replacing_file(self.output / PREPROCESSOR) as temporary:
                shutil.copyfile(self.model.preprocessor, temporary)


def load(model: Model) -> LoadedModel:
    """The model of a recipe, on the recipe's device."""
    found = load_model(
        demo_folder(model.id),
        architecture=model.architecture,
        revision=model.revision,
        random_weights=model.random_weights,
        dtype=getattr(torch, model.dtype),
        device=model.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    return replace(found, name=model.id)


def _identities(recipe: VitRecipe, network: nn.Module) -> dict[str, Any]:
    """What each step depends on: the model's weights, the images, and all steps up to it."""
    common = {"weights": hash_weights(network)}
    common |= {name: repr(getattr(recipe, name)) for name in ("model", "data", "calibration")}
    identities: dict[str, Any] = {}
    for index in range(len(recipe.steps)):
        identity = {**common, "steps": repr(recipe.steps[: index + 1])}
        identities |= {f"{kind}-{index}": identity for kind in ("scores", "search", "recover")}
    return identities


_CALLED = {"recover": "recovered", "slim": "slimmed", "tokens": "fewer tokens", "blocks": "block-sparse"}


def label(name: str, taken: Mapping[str, Any]) -> str:
    """What the model behind a step is called: "static", "recovered", "recovered 2"."""
    said = _CALLED.get(name, name)
    again = sum(other == said or other.startswith(f"{said} ") for other in taken)
    return f"{said} {again + 1}" if again else said


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
