"""What the commands on vision transformers do, and how they show it. Their arguments are in `vit/commands.py`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch

from secateur.console import console, progress_bar, result_table
from secateur.evaluation.chunks import ChunkStore
from secateur.evaluation.evaluator import Evaluated
from secateur.evaluation.naming import distinct_names
from secateur.evaluation.run import Start, hash_path
from secateur.recipe import read_recipe
from secateur.shipped_recipes import ShippedRecipe, find_recipe, recipe_table, shipped_recipes
from secateur.stages import kept_when_stopped
from secateur.surgery.network import Network
from secateur.surgery.plan import Size, measure
from secateur.surgery.unit_kinds import KIND_COLUMNS, UnitKind, count_kinds, kind_rows
from vit.choose import demo_folder, find_model, is_pruned
from vit.data import FolderImages, Images
from vit.evaluate import DENSE, evaluate
from vit.images import PREPROCESSOR
from vit.inputs import example_inputs
from vit.models import LoadedModel
from vit.outcome import DryRun, Pruning
from vit.prune import dry_run, prune
from vit.pruned import TOKENS, count_patches, load
from vit.recipe import VitRecipe
from vit.record import record_of
from vit.report import evaluation_page
from vit.shipped import RECIPES
from vit.sources import DemoImages, check_images
from vit.tables import pruning_tables
from vit.units import Kind, prunable


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is in a model.

    Args:
        model: its id.
        network: class of transformers.
        pruned: whether something was cut from it.
        reduced: whether its tokens go on the way.
        patches: of an image.
        size: of the network on all tokens, multiply-adds of one image.
        units: what may go, by kind; units of some kinds lie within those of others.
    """

    model: str
    network: str
    pruned: bool
    reduced: bool
    patches: int
    size: Size
    units: dict[str, UnitKind]


def prune_recipe(recipe: Path, output: Path | None, dry_run: bool) -> Pruning | DryRun:
    """`secateur vit prune`."""
    file = read_recipe(find_recipe(recipe, RECIPES), VitRecipe)
    if dry_run:
        return _dry_run(file)
    with progress_bar() as report, kept_when_stopped(output or file.recipe.output):
        return prune(file, output, report)[1]


_dry_run = dry_run  # the flag has the function's name


def show_pruning(record: Pruning | DryRun) -> None:
    """Print what was done, or would be."""
    for table in pruning_tables(record):
        console.print(table)


def list_recipes() -> tuple[ShippedRecipe, ...]:
    """`secateur vit recipes`."""
    return shipped_recipes(RECIPES)


def show_recipes(recipes: tuple[ShippedRecipe, ...]) -> None:
    """Print what each recipe does."""
    console.print(recipe_table(recipes))


def describe_model(model: str, architecture: str | None) -> ModelInfo:
    """`secateur vit info`."""
    source = find_model(model, architecture)
    network = source.on_meta()
    inputs = example_inputs(network)
    try:
        units = count_kinds(get_args(Kind), lambda kind: prunable(network, [kind], inputs, min_keep=0))
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
    size = measure(Network(network, (), inputs))
    reduced = source.folder is not None and (source.folder / TOKENS).is_file()
    return ModelInfo(model, type(network).__name__, is_pruned(source), reduced, count_patches(network), size, units)


def show_info(info: ModelInfo) -> None:
    """Print what is in a model."""
    marks = f"{', pruned' if info.pruned else ''}{', tokens reduced' if info.reduced else ''}"
    table = result_table(f"{info.model}: {info.network}{marks}", *KIND_COLUMNS)
    for row in kind_rows(info.units, info.size):
        table.add_row(*row)
    table.add_row("patches", "", f"{info.patches:,}", "", "")
    table.add_row("the whole", "", "", f"{info.size.params:,}", f"{info.size.macs:,}")
    console.print(table)


def evaluate_folders(
    reference: Path,
    candidates: list[Path],
    output: Path,
    data: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    workers: int = 0,
) -> Evaluated:
    """`secateur vit evaluate`, and `secateur evaluate` for folders of vision transformers."""
    start = Start.now()
    store = ChunkStore.within(output, workers)
    with progress_bar() as report, store.kept_when_stopped():
        report(0.0, "loading")
        dense = _loaded(reference)
        names = distinct_names([path.name for path in candidates], candidates, {DENSE, reference.name})
        others = {name: _loaded(path).network for name, path in zip(names, candidates, strict=True)}
        images = _images(data, dense)
        check_images(images, dense)
        batch_size = 32 if batch is None else batch
        if batch_size < 1 or (threads is not None and threads < 1):
            raise ValueError(f"--batch and --threads must be at least 1, got {batch_size} and {threads}")
        identity = {
            "models": [hash_path(folder) for folder in map(_folder, (reference, *candidates))],
            "images": images.signature(),
            "device": str(next(dense.network.parameters()).device),
            "secateur": version("secateur"),
        }
        found, pictures = evaluate(
            dense.network,
            others,
            images,
            batch_size=batch_size,
            threads=threads or 1,
            report=report,
            store=store,
            identity=identity,
        )
    record = record_of(found, [reference, *candidates], start, reference.name)
    store.clear()
    return Evaluated(record, evaluation_page(found, pictures, reference.name))


def _images(data: str | None, model: LoadedModel) -> Images:
    """The images to judge by: a demo's held-out ones, or all of a folder, which are decoded when they are needed."""
    if data in (None, "fashion"):
        return DemoImages("fashion").gather(model).test
    if data == "digits":
        return DemoImages("digits").gather(model).test
    return FolderImages.listed(Path(str(data)), model.preparation())


def _folder(path: Path) -> Path:
    return Path(demo_folder(str(path)))


def _loaded(path: Path) -> LoadedModel:
    folder = _folder(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    preprocessor = folder / PREPROCESSOR
    return LoadedModel(str(path), load(folder).to(device), None, preprocessor if preprocessor.is_file() else None)
