"""A recipe carried out: load, score, choose, cut, repair, recover, evaluate, save.

Every stage keeps what it made in the folder of the result, and long ones a checkpoint, so that a run which was stopped
goes on where it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from diffusion.block_removal import Student, remove_blocks
from diffusion.calibrate import Generator, calibration_of, needs_data, noising_of
from diffusion.choose import Target, choose, dropped, find_target, floored, meets
from diffusion.data import Samples
from diffusion.estimate import check_machine, device_of, estimate
from diffusion.evaluate import Evaluation
from diffusion.greedy_shift import GreedyLatentShift
from diffusion.inputs import example_inputs
from diffusion.judging import judge, protocol_of
from diffusion.masks import EcoDiff, ExpectedBudget
from diffusion.models import LoadedModel, load_model
from diffusion.outcome import DryRun, Pruning
from diffusion.recipe import Budget, DiffusionRecipe, Model
from diffusion.record import metrics_of, pruning_record
from diffusion.recovering import recover
from diffusion.repair import repair
from diffusion.report import SAMPLES_PICTURE, pruning_page, side_by_side
from diffusion.run_stages import gathered, identities
from diffusion.saving import save, save_pipeline
from diffusion.train import DenoisingTask
from diffusion.units import prunable
from secateur.allocation import unit_costs
from secateur.console import Report, silent, stretch
from secateur.evaluation.evaluator import write
from secateur.evaluation.run import Start
from secateur.recipe import RecipeFile, recipe_of, to_plain
from secateur.report.record import Steps
from secateur.stages import Stages, on_cpu
from secateur.surgery.latency import unit_times
from secateur.surgery.network import Network
from secateur.surgery.plan import Plan
from secateur.training import FitRecord
from secateur.units import Criterion, Keep, Scores


@runtime_checkable
class Fitted(Protocol):
    """A criterion that is trained, and can go on from a checkpoint."""

    def fit(
        self,
        network: Any,
        calibration: Any,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
        report: Report = silent,
    ) -> Any:
        """A trainable mask with its record."""
        ...


def dry_run(recipe: DiffusionRecipe | RecipeFile[DiffusionRecipe]) -> DryRun:
    """What a recipe would do: no weights are loaded, and of models in `diffusion.models.PUBLISHED` nothing at all.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the recipe cannot be carried out: with its line.
    """
    file = recipe_of(recipe)
    target = find_target(file)
    found = target.plan()
    estimated = estimate(target, file.recipe, found)
    return DryRun(target.source.id, target.source.component, found, _by_kind(target, target.expected), estimated)


def prune(
    recipe: DiffusionRecipe | RecipeFile[DiffusionRecipe], output: Path | None = None, report: Report = silent
) -> tuple[Network, Pruning]:
    """Carry a recipe out; a run that was stopped goes on.

    The folder gets what `diffusion.load` reads (a network, or a whole pipeline with it), `recipe.yaml`, `results.json`
    and a page with pictures.

    Args:
        recipe: what to do.
        output: folder of the result; None: the recipe's.
        report: told how far it is.

    Returns:
        the pruned network with its cuts, and the record.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the recipe cannot be carried out, nothing is loaded then; weights do not fit; memory would not
            suffice; latents or losses are not finite.
    """
    file = recipe_of(recipe)
    folder = output or file.recipe.output
    if file.recipe.experts is not None:
        raise ValueError("a recipe of experts is carried out by diffusion.aptp.run.train_experts")
    if folder is None:
        raise ValueError("no folder for the result: give -o, or output in the recipe")
    report(0.0, "planning")
    target = find_target(file)
    check_machine(target, file)
    return _Run(file, target, Path(folder), report).whole()


class _Run:
    """One run, stage by stage."""

    def __init__(self, file: RecipeFile[DiffusionRecipe], target: Target, output: Path, report: Report) -> None:
        self.file, self.recipe, self.target, self.output, self.report = file, file.recipe, target, output, report
        self.start, self.steps = Start.now(), Steps()
        with self.steps("load"):
            report(0.02, "loading")
            self.model = load(file.recipe.model)
            self.stages = Stages.within(output, identities(file.recipe, self.model.hashes()))
        self.generator = Generator(self.model, file)
        self.task = DenoisingTask(noising_of(self.model), file.recipe.recovery.weighting)
        self.student: Student | None = None
        self._samples: Samples | None = None

    def whole(self) -> tuple[Network, Pruning]:
        self.file.save(self.output)
        small, found, keep = self.cut()
        repaired = self.repaired(small)
        pruned = {"pruned": small.module}
        if self.recipe.recovery.steps:
            pruned["pruned"] = copy.deepcopy(small.module)  # recovery changes the network itself
        training = self.recovered(small)
        if training is not None:
            pruned["recovered"] = small.module
        evaluation, pictures = self.evaluated(pruned)
        if self.model.cuts is not None:
            small.cuts = self.model.cuts.then(small.cuts)
        record = self.record(found, keep, repaired, training, evaluation)
        with self.steps("save"):
            self.report(0.98, "saving")
            self.save(small, record)
            side_by_side(pictures, self.output / SAMPLES_PICTURE)
        shared = pruning_record(record, self.target.source, self.output, self.start, protocol_of(self.generator))
        write(shared, pruning_page(record, pictures), self.output)
        self.stages.clear()
        return small, record

    def cut(self) -> tuple[Network, Plan, Keep]:
        """The smaller network, its sizes, and which units stay."""
        blocks = self.recipe.units.blocks
        if blocks is not None:
            with self.steps("cut"):
                self.student = remove_blocks(self.model.network, blocks)
            return Network(self.student.model, ()), self.target.plan(), {}
        network = self.units()
        keep = self.chosen(network)
        with self.steps("cut"):
            return network.cut(keep), self.target.plan(keep), keep

    def units(self) -> Network:
        """The loaded network with its units; its groups are those that were planned with."""
        units = self.recipe.units
        found = prunable(self.model.network, units.kinds, modules=units.modules, min_keep=units.min_keep)
        return floored(found, {group.name: group.min_keep for group in self.target.groups})

    def chosen(self, network: Network) -> Keep:
        if self.recipe.units.drop:
            return dropped(self.file, self.target)
        criterion, budget = self.recipe.criterion, self.recipe.budget
        assert criterion is not None and budget is not None
        times = None
        if budget.cost == "ms":
            with self.steps("time units"):
                self.report(0.05, "timing units")
                inputs = self.example(self.recipe.calibration.batch_size)
                times = unit_times(network, inputs, repeats=self.recipe.evaluation.repeats)
        with self.steps("score"):
            scores = on_cpu(self.stages.scores(lambda: self.scored(network, criterion)))
        with self.file.blaming("budget"):
            return choose(self.target, scores, budget, times)

    def scored(self, network: Network, criterion: Criterion) -> Scores:
        report = stretch(self.report, 0.05, 0.5)
        report(0.0, "scoring")
        criterion = to_the_budget(criterion, self.target, self.recipe.budget)
        calibration = calibration_of(criterion, self.generator, self.samples if needs_data(criterion) else None)
        if isinstance(criterion, Fitted):
            checkpoint = self.stages.checkpoint("scores")
            mask, _ = criterion.fit(network, calibration, checkpoint=checkpoint, resume=True, report=report)
            logits = zip(mask.groups, mask.logits, strict=True)
            return {group.name: each.detach().double() for group, each in logits}
        names = {field.name for field in fields(criterion)}  # type: ignore[arg-type]
        if "report" in names:
            criterion = replace(criterion, report=report)  # type: ignore[type-var]
        if "record" in names and criterion.record is None:  # type: ignore[attr-defined]
            measured = self.stages.checkpoint("scores").with_suffix(".json")
            criterion = replace(criterion, record=measured)  # type: ignore[type-var]
        return criterion.score(network, calibration)

    @property
    def samples(self) -> Samples:
        """Clean latents, gathered when they are first needed."""
        if self._samples is None:
            with self.steps("gather data"):
                self.report(0.05, "gathering data")
                self._samples = gathered(self.stages, self.file, self.model, self.generator)
        return self._samples

    def repaired(self, small: Network) -> tuple[str, ...]:
        if self.recipe.repair is None:
            return ()
        with self.steps("repair"):
            options = self.recipe.calibration
            return repair(
                small,
                self.model.network,
                self.generator.trajectories(options.count),
                self.recipe.repair,
                batch_size=options.batch_size,
                report=stretch(self.report, 0.45, 0.5),
            )

    def recovered(self, small: Network) -> FitRecord | None:
        if not self.recipe.recovery.steps:
            return None
        with self.steps("recover"):
            return recover(
                small.module,
                self.model.network,
                self.samples,
                self.task,
                self.recipe.recovery,
                student=self.student,
                checkpoint=self.stages.checkpoint("recovery"),
                seed=self.recipe.calibration.seed,
                report=stretch(self.report, 0.5, 0.85),
            )

    def evaluated(self, pruned: Mapping[str, nn.Module]) -> tuple[Evaluation, dict[str, torch.Tensor]]:
        with self.steps("evaluate"):
            inputs = self.example(self.recipe.evaluation.batch_size)
            report, store = stretch(self.report, 0.85, 0.97), self.stages.chunks()
            return judge(self.model, pruned, self.generator, inputs, report, store)

    def example(self, batch: int) -> dict[str, Any]:
        tokens = self.target.source.architecture.text_tokens or 77
        return example_inputs(self.model.network, batch=batch, size=self.recipe.calibration.size, text_tokens=tokens)

    def record(
        self,
        found: Plan,
        keep: Keep,
        repaired: tuple[str, ...],
        training: FitRecord | None,
        evaluation: Evaluation,
    ) -> Pruning:
        criterion = self.recipe.criterion
        return Pruning(
            self.model.name,
            self.model.component,
            None if criterion is None else type(criterion).__name__,
            found,
            _by_kind(self.target, keep),
            repaired,
            training,
            evaluation,
            self.steps.seconds,
            self.recipe.calibration.seed,
            to_plain(self.recipe),
        )

    def save(self, small: Network, record: Pruning) -> None:
        if self.student is not None:
            save_plain(self.student.model, self.model, self.output)
            return
        metrics = metrics_of(record.evaluation.candidates[-1])
        options: dict[str, Any] = {"dense": self.model.network, "recipe": record.recipe, "metrics": metrics}
        if self.model.pipeline is None:
            save(small, self.output, **options)
        else:
            save_pipeline(self.model.pipeline, {self.model.component: small}, self.output, **options)


def save_plain(network: Any, model: LoadedModel, folder: Path) -> None:
    """Write a network that diffusers' configuration describes, in the place of the model's in its pipeline."""
    if model.pipeline is None:
        network.save_pretrained(folder)
        return
    try:
        model.pipeline.register_modules(**{model.component: network})
        model.pipeline.save_pretrained(folder)
    finally:
        model.pipeline.register_modules(**{model.component: model.network})


def load(model: Model) -> LoadedModel:
    """The model of a recipe, on the recipe's device.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: there is no such device, or the weights do not fit.
    """
    return load_model(
        model.id,
        model.component,
        revision=model.revision,
        variant=model.variant,
        random_weights=model.random_weights,
        dtype=getattr(torch, model.dtype),
        device=device_of(model),
    )


def to_the_budget(criterion: Criterion, target: Target, budget: Budget | None = None) -> Criterion:
    """Criteria that have to know how much will go are told, unless they say it themselves; any other stays.

    `EcoDiff` with its pressure as by default is held to the recipe's share; `GreedyLatentShift` goes on to its limit.
    """
    if isinstance(criterion, EcoDiff) and criterion.pressure == ExpectedBudget():
        costs = {group.name: unit_costs(group, "params") for group in target.groups}
        kept = sum(float(costs[name][keep].sum()) for name, keep in target.expected.items())
        share = kept / sum(float(cost.sum()) for cost in costs.values())
        return replace(criterion, pressure=ExpectedBudget(share=max(share, 0.01), cost="params"))
    if isinstance(criterion, GreedyLatentShift) and criterion.enough is None and budget is not None:
        return replace(criterion, enough=meets(target, budget))
    return criterion


def _by_kind(target: Target, keep: Keep) -> dict[str, tuple[int, int]]:
    totals: dict[str, tuple[int, int]] = {}
    for group in target.groups:
        kept, size = totals.get(target.kinds[group.name], (0, 0))
        totals[target.kinds[group.name]] = kept + int(keep[group.name].sum()), size + group.size
    return totals
