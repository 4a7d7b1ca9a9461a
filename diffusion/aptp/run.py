"""A recipe of experts carried out: load, gather, train the router, cut, train the experts, evaluate, save.

Each training keeps a checkpoint in the folder of the result, so that a run which was stopped goes on where it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.aptp.captions import Captioned, Encode
from diffusion.aptp.experts import Experts, harden, save_experts
from diffusion.aptp.report import RouterRecord, describe
from diffusion.aptp.serving import sentence_embeddings
from diffusion.aptp.train import Aptp
from diffusion.calibrate import Generator, noising_of
from diffusion.choose import Target, find_target, floored
from diffusion.estimate import check_machine
from diffusion.evaluate import Evaluation, evaluate
from diffusion.inputs import example_inputs
from diffusion.judging import asked_of, identity_of, protocol_of, sampling_of
from diffusion.prompting import Classes
from diffusion.prune import load
from diffusion.recipe import DiffusionRecipe
from diffusion.record import experts_record, metrics_of
from diffusion.report import SAMPLES_PICTURE, experts_page, side_by_side
from diffusion.run_stages import depends_on, gathered
from diffusion.scores import LatentSource
from diffusion.train import DenoisingTask
from diffusion.units import prunable
from secateur.console import Report, silent, stretch
from secateur.evaluation.evaluator import write
from secateur.evaluation.run import Start
from secateur.recipe import RecipeFile, recipe_of, to_plain
from secateur.report.notebook import table_html
from secateur.report.record import Steps
from secateur.stages import Stages
from secateur.surgery.network import Network

ROUTED, ONE = "experts", "one network"
"""What the page calls the experts, and the one network of the same cost that they are compared with."""


@dataclass(frozen=True, slots=True)
class ExpertsRecord:
    """What a recipe of experts did.

    Args:
        model: its id.
        component: the part that was pruned.
        routers: "experts", and "one network" where it was made: what goes where, and what it costs.
        routes: prompt of the evaluation -> its expert.
        evaluation: of both, as they were cut and as they are after training, against the dense model.
        seconds: time by stage of this run.
        seed: of the calibration.
        recipe: as it was read.
    """

    model: str
    component: str
    routers: dict[str, RouterRecord]
    routes: dict[str, int]
    evaluation: Evaluation
    seconds: dict[str, float]
    seed: int
    recipe: dict[str, Any]

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        from diffusion.tables import experts_tables  # which names this class

        return table_html(*experts_tables(self))


def train_experts(
    recipe: DiffusionRecipe | RecipeFile[DiffusionRecipe],
    output: Path | None = None,
    report: Report = silent,
    encode: Encode = sentence_embeddings,
) -> tuple[Experts, ExpertsRecord]:
    """Carry a recipe of experts out; a run that was stopped goes on.

    The folder gets what `diffusion.aptp.serving.Routed.from_pretrained` reads, `recipe.yaml`, `results.json` and a page
    with pictures; the one network to compare with lies in `one` in it.

    Args:
        recipe: with `experts`.
        output: folder of the result; None: the recipe's.
        report: told how far it is.
        encode: what embeds prompts for the router.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the recipe has no experts or cannot be carried out; the model came without a pipeline of prompts.
    """
    file = recipe_of(recipe)
    folder = output or file.recipe.output
    if file.recipe.experts is None or folder is None:
        raise ValueError("a recipe of experts needs experts, and a folder for the result: give -o, or output")
    report(0.0, "planning")
    target = find_target(file)
    check_machine(target, file)
    return _Run(file, target, Path(folder), report, encode).whole()


class RoutedNetwork(nn.Module):
    """The networks of experts, held together."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.networks = nn.ModuleList(network.module for network in experts.networks)


@dataclass(frozen=True)
class RoutedSource:
    """Samples of plain networks, and of routed ones: each from the expert of its prompt.

    Args:
        plain: makes those of plain networks.
        codes: seed -> expert.
    """

    plain: LatentSource
    codes: Mapping[int, int]

    def __call__(self, target: Any, seeds: Sequence[int], /) -> Float[Tensor, "seeds ..."]:
        """The final latents of `target`, in the order of the seeds."""
        if not isinstance(target, RoutedNetwork):
            return self.plain(target, seeds)
        made: dict[int, Tensor] = {}
        for code, network in enumerate(target.networks):
            own = [seed for seed in seeds if self.codes[seed] == code]
            if own:
                made |= dict(zip(own, self.plain(network, own), strict=True))
        return torch.stack([made[seed] for seed in seeds])


class _Run:
    """One run, stage by stage."""

    def __init__(
        self, file: RecipeFile[DiffusionRecipe], target: Target, output: Path, report: Report, encode: Encode
    ) -> None:
        assert file.recipe.experts is not None
        self.file, self.recipe, self.output, self.report = file, file.recipe, output, report
        self.experts, self.encode = file.recipe.experts, encode
        self.floors = {group.name: group.min_keep for group in target.groups}
        self.source, self.places = target.source, {ROUTED: output, ONE: output / "one"}
        self.start, self.steps = Start.now(), Steps()
        with self.steps("load"):
            report(0.01, "loading")
            self.model = load(file.recipe.model)
            if self.model.pipeline is None or isinstance(self.model.prompting, Classes):
                raise ValueError(f"{file.place('model', 'id')}experts need a pipeline that draws from prompts")
            self.stages = Stages.within(output, _identities(file.recipe, self.model.hashes()))
        tokens = target.source.architecture.text_tokens or 77
        self.inputs = example_inputs(self.model.network, size=file.recipe.calibration.size, text_tokens=tokens)
        self.generator = Generator(self.model, file)
        self.task = DenoisingTask(noising_of(self.model), file.recipe.recovery.weighting)

    def whole(self) -> tuple[Experts, ExpertsRecord]:
        self.file.save(self.output)
        with self.steps("gather data"):
            self.report(0.02, "gathering data")
            data = self.data()
        ways = {ROUTED: self.experts.pruning}
        if self.experts.baseline:
            ways[ONE] = replace(self.experts.pruning, codes=1)
        made: dict[str, tuple[Experts, Experts]] = {}
        for place, (name, pruning) in enumerate(ways.items()):
            report = stretch(self.report, 0.05 + 0.8 * place / len(ways), 0.05 + 0.8 * (place + 1) / len(ways))
            made[name] = self.trained(name, pruning, data, report)
        evaluation, pictures, routes = self.evaluated(made)
        record = self.record(made, data, evaluation, routes)
        with self.steps("save"):
            self.save(made, record)
            side_by_side(pictures, self.output / SAMPLES_PICTURE)
        written = {_trained(name): self.places[name] for name in made}
        shared = experts_record(record, self.source, written, self.start, protocol_of(self.generator))
        write(shared, experts_page(record, pictures), self.output)
        self.stages.clear()
        return made[ROUTED][1], record

    def data(self) -> Captioned:
        samples = gathered(self.stages, self.file, self.model, self.generator)
        dtype = next(self.model.network.parameters()).dtype
        captioned = Captioned.of(samples, self.encode, self.recipe.recovery.drop)
        return replace(captioned, latents=captioned.latents.to(dtype))

    def units(self, network: nn.Module) -> Network:
        units = self.recipe.units
        found = prunable(network, units.kinds, self.inputs, modules=units.modules, min_keep=units.min_keep)
        return floored(found, self.floors)

    def trained(self, name: str, pruning: Aptp, data: Captioned, report: Report) -> tuple[Experts, Experts]:
        """The experts as they were cut, and as they are after their training."""
        gated = self.units(copy.deepcopy(self.model.network))
        first, second = stretch(report, 0, 0.5), stretch(report, 0.5, 1)
        with self.steps(f"train router: {name}"):
            checkpoint = self.stages.checkpoint(f"router of {name}")
            router, _ = pruning.fit(gated, data, self.task, checkpoint=checkpoint, resume=True, report=first)
        experts = harden(router, gated, data.embeddings)
        at_once = copy.deepcopy(experts)
        with self.steps(f"train: {name}"):
            folder = self.stages.checkpoint(name)
            teacher = self.units(self.model.network)
            self.experts.tuning.fit(experts, teacher, data, self.task, checkpoints=folder, resume=True, report=second)
        for network in experts.networks:
            network.module.eval()
        return at_once, experts

    def evaluated(
        self, made: Mapping[str, tuple[Experts, Experts]]
    ) -> tuple[Evaluation, dict[str, Tensor], dict[str, int]]:
        """Against the dense model, on the same seeds; and which expert each prompt has."""
        options = self.recipe.evaluation
        asked = asked_of(self.generator)
        codes = made[ROUTED][1].router.route(self.encode(asked)).tolist()
        sampling, judges, classifier = sampling_of(self.model, self.generator)
        of_seed = {seed: codes[index % len(asked)] for index, seed in enumerate(sampling.seeds)}
        networks: dict[str, nn.Module] = {}
        for place in (1, 0):
            for name, pair in made.items():
                called, one = _trained(name) if place else f"{name}, cut", pair[place]
                networks[called] = RoutedNetwork(one) if name == ROUTED else one.networks[0].module
        with self.steps("evaluate"):
            evaluation, pictures = evaluate(
                self.model.network,
                networks,
                replace(sampling, sample=RoutedSource(sampling.sample, of_seed)),
                judges=judges,
                classifier=classifier,
                shown=options.shown,
                report=stretch(self.report, 0.85, 0.97),
                store=self.stages.chunks(),
                identity={"codes": codes, **identity_of([self.model.network, *networks.values()], self.generator)},
            )
        return evaluation, pictures, dict(zip(asked, codes, strict=True))

    def record(
        self,
        made: Mapping[str, tuple[Experts, Experts]],
        data: Captioned,
        evaluation: Evaluation,
        routes: dict[str, int],
    ) -> ExpertsRecord:
        dense = self.units(self.model.network)
        return ExpertsRecord(
            self.model.name,
            self.model.component,
            {name: describe(experts, dense, data) for name, (_, experts) in made.items()},
            routes,
            evaluation,
            self.steps.seconds,
            self.recipe.calibration.seed,
            to_plain(self.recipe),
        )

    def save(self, made: Mapping[str, tuple[Experts, Experts]], record: ExpertsRecord) -> None:
        self.report(0.98, "saving")
        measured = {one.name: one for one in record.evaluation.candidates}
        options = {"dense": self.model.network, "recipe": record.recipe}
        for name, (_, experts) in made.items():
            metrics = metrics_of(measured[_trained(name)])
            place = self.places[name]
            save_experts(
                experts, self.model.pipeline, place, component=self.model.component, metrics=metrics, **options
            )


def _trained(name: str) -> str:
    """What the evaluation calls the trained networks of `name`."""
    return f"{name}, trained"


def _identities(recipe: DiffusionRecipe, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What each training depends on."""
    data = depends_on(recipe, hashes)
    assert recipe.experts is not None
    plain = to_plain(recipe.experts)
    trained = {**data, "units": to_plain(recipe.units), "recovery": to_plain(recipe.recovery), "experts": plain}
    names = [name for way in (ROUTED, ONE) for name in (way, f"router of {way}")]
    return {"samples": data, **dict.fromkeys(names, trained)}
