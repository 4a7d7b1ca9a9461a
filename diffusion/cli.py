"""What the commands on diffusion models do, and how they show it. Their arguments are in `diffusion/commands.py`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusion.aptp.run import ExpertsRecord, train_experts
from diffusion.calibrate import Generator, read_prompts, sampling_recipe
from diffusion.evaluate import DENSE
from diffusion.generate import drawn_all, write_each
from diffusion.inputs import example_inputs
from diffusion.judging import judge, protocol_of
from diffusion.models import Source, find, load_model
from diffusion.onnx_file import write_onnx
from diffusion.outcome import DryRun, Pruning
from diffusion.patch_parallel.measuring import PatchMeasurement, measure_patches
from diffusion.patch_parallel.parallel import Staleness
from diffusion.prune import dry_run, prune
from diffusion.recipe import Calibration, DiffusionRecipe, Judging
from diffusion.record import record_of
from diffusion.report import SAMPLES_PICTURE, evaluation_page, grid, side_by_side
from diffusion.shipped import RECIPES
from diffusion.tables import experts_tables, patch_table, pruning_tables
from diffusion.units import Kind, prunable
from secateur.console import console, progress_bar, result_table
from secateur.evaluation.chunks import ChunkStore
from secateur.evaluation.evaluator import Evaluated
from secateur.evaluation.naming import distinct_names
from secateur.evaluation.run import Start
from secateur.files import check_folder, replacing_file
from secateur.image_folders.decoding import read_image
from secateur.quantities import format_bytes
from secateur.recipe import read_recipe, recipe_of
from secateur.shipped_recipes import ShippedRecipe, find_recipe, recipe_table, shipped_recipes
from secateur.stages import kept_when_stopped
from secateur.surgery.network import Network
from secateur.surgery.plan import Size, measure
from secateur.surgery.unit_kinds import KIND_COLUMNS, UnitKind, count_kinds, kind_rows

_KINDS: tuple[Kind, ...] = ("heads", "neurons", "channels", "modulation", "resnets", "attentions", "feed_forwards")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is in a model.

    Args:
        model: its id.
        component: the part that denoises.
        network: class of diffusers.
        pruned: whether something was cut from it.
        size: of the network, multiply-adds of one sample.
        units: what may go, by kind; units of some kinds lie within those of others.
    """

    model: str
    component: str
    network: str
    pruned: bool
    size: Size
    units: dict[str, UnitKind]


@dataclass(frozen=True, slots=True)
class Generated:
    """Pictures that were drawn.

    Args:
        file: the grid of them, row by row; None: it was not asked for.
        folder: of single pictures, named by their places; None: they were not asked for.
        prompts: of each.
        seed: of the noise, each picture's own by its place.
    """

    file: Path | None
    folder: Path | None
    prompts: tuple[str, ...]
    seed: int


def prune_recipe(recipe: Path, output: Path | None, dry_run: bool) -> Pruning | ExpertsRecord | DryRun:
    """`secateur diffusion prune`."""
    file = read_recipe(find_recipe(recipe, RECIPES), DiffusionRecipe)
    if dry_run:
        return _dry_run(file)
    with progress_bar() as report, kept_when_stopped(output or file.recipe.output):
        if file.recipe.experts is not None:
            return train_experts(file, output, report)[1]
        return prune(file, output, report)[1]


_dry_run = dry_run  # the flag has the function's name


def show_pruning(record: Pruning | ExpertsRecord | DryRun) -> None:
    """Print what was done, or would be."""
    for table in experts_tables(record) if isinstance(record, ExpertsRecord) else pruning_tables(record):
        console.print(table)


def list_recipes() -> tuple[ShippedRecipe, ...]:
    """`secateur diffusion recipes`."""
    return shipped_recipes(RECIPES)


def show_recipes(recipes: tuple[ShippedRecipe, ...]) -> None:
    """Print what each recipe does."""
    console.print(recipe_table(recipes))


def describe_model(model: str, component: str | None) -> ModelInfo:
    """`secateur diffusion info`."""
    source = find(model, component)
    network = source.on_meta()
    inputs = example_inputs(network, text_tokens=source.architecture.text_tokens or 77)
    units = count_kinds(_KINDS, lambda kind: prunable(network, [kind], inputs, min_keep=0))
    size = measure(Network(network, (), inputs))
    kind_name = type(network).__name__
    return ModelInfo(model, source.component, kind_name, source.manifest is not None, size, units)


def show_info(info: ModelInfo) -> None:
    """Print what is in a model."""
    title = f"{info.model}: {info.network}{', pruned' if info.pruned else ''}"
    table = result_table(title, *KIND_COLUMNS)
    for row in kind_rows(info.units, info.size):
        table.add_row(*row)
    table.add_row("the whole", "", "", f"{info.size.params:,}", f"{info.size.macs:,}")
    console.print(table)


def generate_pictures(
    folder: str,
    prompt: list[str] | None,
    prompts: Path | None,
    output: Path | None,
    each: Path | None,
    count: int,
    batch: int,
    steps: int,
    guidance: float,
    seed: int,
    device: str | None,
) -> Generated:
    """`secateur diffusion generate`.

    Raises:
        ValueError: there are no prompts, or there is nowhere to write; as for `diffusion.generate.write_each`.
    """
    calibration = Calibration(tuple(prompt or ()), prompts, steps=steps, guidance=guidance, batch_size=batch, seed=seed)
    asked = tuple(text for text in read_prompts(calibration) for _ in range(count))
    if not asked:
        raise ValueError("missing: prompt; give --prompt TEXT, or --prompts FILE.txt with a line each")
    if output is None and each is None:
        raise ValueError("missing: output; give -o PNG for a grid, or --each DIR for single pictures")
    for place in (each, None if output is None else output.parent):
        if place is not None:
            check_folder(place)
    stopped = nullcontext() if each is None else ChunkStore(each).kept_when_stopped()
    with progress_bar() as report, stopped:
        model = load_model(folder, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
        generator = Generator(model, recipe_of(sampling_recipe(folder, calibration)))
        files = () if each is None else write_each(generator, asked, each, report)
        if output is not None:
            held = [read_image(file) for file in files]
            pictures = torch.stack(held) if held else drawn_all(generator, asked, report)
            with replacing_file(output) as temporary:
                Image.fromarray(grid(pictures)).save(temporary, "PNG")
    return Generated(output, each, asked, seed)


def show_pictures(found: Generated) -> None:
    """Say what was written."""
    for place in (found.file, found.folder):
        if place is not None:
            console.print(f"{place}: {len(found.prompts)} pictures", highlight=False, markup=False)


@dataclass(frozen=True, slots=True)
class Exported:
    """An ONNX file: its path and bytes, and the shape of each input by name."""

    file: Path
    bytes: int
    inputs: dict[str, tuple[int, ...]]


def export_model(model: str, output: Path, component: str | None, batch: int, size: int | None) -> Exported:
    """`secateur diffusion export`."""
    loaded = load_model(model, component)
    tokens = find(model, component).architecture.text_tokens or 77
    inputs = example_inputs(loaded.network, size=size, batch=batch, text_tokens=tokens)
    names = write_onnx(loaded.network, output, inputs)
    return Exported(output, output.stat().st_size, {name: tuple(inputs[name].shape) for name in names})


def show_exported(found: Exported) -> None:
    """Say what the file takes."""
    table = result_table(f"{found.file}: {format_bytes(found.bytes)}", "input", "shape")
    for name, shape in found.inputs.items():
        table.add_row(name, " x ".join(map(str, shape)))
    console.print(table)


def measure_sharing(
    model: str,
    prompt: list[str] | None,
    ranks: int,
    steps: int,
    samples: int,
    size: int | None,
    warmup: list[int],
    context: list[float],
) -> PatchMeasurement:
    """`secateur diffusion patches`: all steps synchronous, then each warm-up with all that the others know and with
    each share of what neighbours know."""
    shares = [None, *context]
    shorter = [each for each in warmup if each < steps]
    ways = [Staleness(warmup=None), *(Staleness(each, share) for each in shorter for share in shares)]
    calibration = Calibration(tuple(prompt or ()), steps=steps, size=size)
    return measure_patches(model, ways, calibration, ranks=ranks, samples=samples)


def show_sharing(found: PatchMeasurement) -> None:
    """Print what each way costs."""
    console.print(patch_table(found))


def evaluate_folders(
    reference: Path,
    candidates: list[Path],
    output: Path,
    samples: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    prompts: Path | None = None,
    judge: Any = None,
) -> Evaluated:
    """`secateur diffusion evaluate`, and `secateur evaluate` for folders of diffusion models.

    Raises:
        ValueError: a candidate takes other inputs than the reference does.
    """
    for path in candidates:
        _check_alike(find(str(reference)), find(str(path)))
    start = Start.now()
    judging = replace(Judging(judge=judge), samples=16 if samples is None else samples)
    calibration = Calibration(prompts_file=prompts, steps=steps or 20, guidance=1.0 if guidance is None else guidance)
    file = recipe_of(replace(sampling_recipe(str(reference), calibration), evaluation=judging))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    store = ChunkStore.within(output)
    with progress_bar() as report, store.kept_when_stopped():
        report(0.0, "loading")
        dense = load_model(str(reference), device=device)
        names = distinct_names([path.name for path in candidates], candidates, {DENSE, reference.name})
        others = {
            name: load_model(str(path), device=device).network for name, path in zip(names, candidates, strict=True)
        }
        tokens = find(str(reference)).architecture.text_tokens or 77
        inputs = example_inputs(dense.network, batch=judging.batch_size, text_tokens=tokens)
        generator = Generator(dense, file)
        protocol = protocol_of(generator)
        found, pictures = _judge(dense, others, generator, inputs, report, store)
    record = record_of(found, [reference, *candidates], start, protocol, reference.name)
    side_by_side(pictures, output / SAMPLES_PICTURE)
    page = evaluation_page(found, pictures, reference.name)
    store.clear()
    return Evaluated(record, page)


def _check_alike(reference: Source, candidate: Source) -> None:
    """Raise ValueError where the candidate cannot be asked for what the reference is."""
    expected, found = _inputs_of(reference), _inputs_of(candidate)
    differing = [name for name in expected | found if expected.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{candidate.id}: its {name} is {found.get(name)}, that of {reference.id} is {expected.get(name)}: "
            "compare pruned models with the one that they were pruned from"
        )


def _inputs_of(source: Source) -> dict[str, str]:
    """The network's class, what one sample of each input is, and how many classes it knows."""
    config = source.architecture.config
    inputs = example_inputs(source.architecture.build("meta"))
    shapes = {name: _one_of(value) for name, value in inputs.items()}
    classes = config.get("num_embeds_ada_norm") or config.get("num_class_embeds")
    return {"class": source.architecture.kind, **shapes, "number of classes": str(classes)}


def _one_of(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_one_of(one)}" for name, one in value.items())
    return "x".join(map(str, value.shape[1:])) if isinstance(value, torch.Tensor) else str(value)


_judge = judge  # the flag has the function's name
