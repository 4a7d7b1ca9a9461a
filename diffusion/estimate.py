"""How much memory and time a recipe will take, before it is carried out."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.calibrate import needs_data, wanted
from diffusion.choose import Target
from diffusion.data import OwnSamples
from diffusion.greedy_shift import GreedyLatentShift
from diffusion.masks import EcoDiff
from diffusion.recipe import DiffusionRecipe, ExpertTraining, Model
from diffusion.recomputing import blocks_run_by
from diffusion.scores import LatentSet
from secateur.importance.objective import mask_of_ones
from secateur.metrics.memory import measure_peak_memory
from secateur.quantities import format_bytes
from secateur.recipe import RecipeFile
from secateur.surgery.cost import run_example
from secateur.surgery.network import Network
from secateur.surgery.plan import Plan

_EFFICIENCY = 0.5
"""Share of the speed of a matrix product that networks reach."""

_BACKWARD = 2
"""Multiply-adds of a backward, in forwards."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take, roughly.

    Args:
        weights_bytes: of the dense and of the pruned network, with what training them needs.
        activations_bytes: the most that is held at a time beside them.
        forwards: of one sample, by stage; a backward counts as two.
        seconds: all of them, at half the speed of a matrix product on this machine.
    """

    weights_bytes: int
    activations_bytes: int
    forwards: dict[str, int]
    seconds: float

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.activations_bytes


def estimate(target: Target, recipe: DiffusionRecipe, plan: Plan) -> Estimate:
    """Count what is held and what is computed; one forward on the meta device, and a short matrix product."""
    forwards = count_forwards(target, recipe)
    macs = plan.dense.macs or 0
    rate = matrix_product_rate(_device_or_cpu(recipe.model)) * _EFFICIENCY
    seconds = sum(forwards.values()) * macs / rate
    return Estimate(weights(recipe, plan), activations(target, recipe), forwards, seconds)


def weights(recipe: DiffusionRecipe, plan: Plan) -> int:
    """Bytes of the networks that are held at a time, and of what training them needs."""
    size = torch.finfo(getattr(torch, recipe.model.dtype)).bits / 32
    if recipe.experts is not None:
        # The gated network trains beside its teacher and the dense one; then all experts are held, of which one trains.
        routed = 6 * plan.dense.bytes
        held = 2 * plan.dense.bytes + plan.pruned.bytes * (2 * recipe.experts.pruning.codes + 3)
        return round(size * max(routed, held))
    trained = 4 if recipe.recovery.steps and recipe.recovery.adapters is None else 1
    ema = 1 if recipe.recovery.ema is not None and recipe.recovery.steps else 0
    return round(size * (plan.dense.bytes + plan.pruned.bytes * (trained + ema)))


def count_forwards(target: Target, recipe: DiffusionRecipe) -> dict[str, int]:
    """Stage -> forwards of one sample that it takes."""
    options, training, judging = recipe.calibration, recipe.recovery, recipe.evaluation
    calls = options.steps * (1 if options.guidance == 1 else 2)
    found: dict[str, int] = {}
    criterion = recipe.criterion
    if isinstance(criterion, EcoDiff):
        # Each trajectory is sampled, and each of its steps run again, with gradients.
        each = calls * (2 + _BACKWARD)
        found["score"] = options.count * calls + criterion.steps * min(criterion.batch_size, options.count) * each
    elif criterion is not None and LatentSet in wanted(criterion):
        units = sum(group.size for group in target.groups)
        # One more scoring of those that are left for each unit that goes.
        rounds = sum(int((~keep).sum()) for keep in target.expected.values())
        greedy = isinstance(criterion, GreedyLatentShift)
        scored = sum(units - gone for gone in range(rounds)) if greedy else units
        found["score"] = (1 + scored) * options.count * calls
    elif needs_data(criterion):
        found["score"] = options.timesteps * options.batch_size * (1 + _BACKWARD)
    if (needs_data(criterion) or training.steps or recipe.experts) and isinstance(options.data, OwnSamples):
        found["gather data"] = options.data.count * calls
    if recipe.repair is not None:
        found["repair"] = options.count * calls
    if training.steps:
        teacher = 0 if training.distil is None else 1
        found["recover"] = training.steps * training.batch_size * (1 + _BACKWARD + teacher)
    if recipe.experts is not None:
        found |= _of_experts(recipe.experts)
    guidance = options.guidance if judging.guidance is None else judging.guidance
    sampled = judging.samples * (judging.steps or options.steps) * (1 if guidance == 1 else 2)
    models = 2 + bool(training.steps)
    if recipe.experts is not None:
        models = 3 + recipe.experts.baseline
    found["evaluate"] = sampled * models
    return found


def _of_experts(experts: ExpertTraining) -> dict[str, int]:
    """Forwards of the router's training and of its experts', and of the one network to compare with."""
    pruning, tuning = experts.pruning, experts.tuning
    each, several = 1 + _BACKWARD + 1, 1 + experts.baseline  # the teacher runs, too
    networks = pruning.codes + experts.baseline
    return {
        "train routers": several * pruning.steps * pruning.batch_size * each,
        "train experts": networks * tuning.steps * tuning.batch_size * each,
    }


def activations(target: Target, recipe: DiffusionRecipe) -> int:
    """Bytes that the largest call holds: with its graph where something is differentiated.

    A backward works on top of the graph in about the memory of a forward without one.
    """
    size = torch.finfo(getattr(torch, recipe.model.dtype)).bits / 32
    network, inputs = target.network, target.network.example_inputs
    criterion, training = recipe.criterion, recipe.recovery
    batches = [recipe.evaluation.batch_size, recipe.calibration.batch_size]
    with torch.no_grad():
        plain = measure_peak_memory(lambda: run_example(network.module, inputs), torch.device("meta")).bytes
    differentiated, graph = training.micro_batch if training.steps else 0, 0
    if isinstance(criterion, EcoDiff):
        samples = criterion.micro_batch or criterion.batch_size
        graph = (saved_bytes(network, criterion.recompute_blocks) + plain) * samples
    elif needs_data(criterion):
        differentiated = max(differentiated, recipe.calibration.batch_size)
    if recipe.experts is not None:
        pruning, tuning = recipe.experts.pruning, recipe.experts.tuning
        differentiated = max(pruning.micro_batch or pruning.batch_size, tuning.micro_batch)
    if differentiated:
        graph = max(graph, (saved_bytes(network) + plain) * differentiated)
    return round(size * max(plain * max(batches), graph))


def saved_bytes(network: Network, recompute_blocks: bool = False) -> int:
    """Bytes that a forward of one sample keeps for a backward to the gates.

    Args:
        network: on the meta device, with example inputs of one sample.
        recompute_blocks: whether blocks are run again, one by one (`diffusion.recomputing`): their inputs are kept, and
            what the largest of them keeps.
    """
    held, largest = _Held(network.module), 0

    def run(block: nn.Module, *args: Any) -> Any:
        nonlocal largest
        own = _Held(network.module)
        for each in args:
            if isinstance(each, Tensor):
                held.note(each)
        with own.saving():
            output = block(*args)
        largest = max(largest, own.bytes)
        return output

    blocks = blocks_run_by(network.module, run) if recompute_blocks else nullcontext()
    with torch.enable_grad(), held.saving(), network.masked(mask_of_ones(network)), blocks:
        run_example(network.module, network.example_inputs)
    return held.bytes + largest


class _Held:
    """Tensors that are kept for a backward, each storage once; the network's own are not counted."""

    def __init__(self, module: nn.Module) -> None:
        self._own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        self._storages: dict[int, Any] = {}  # themselves: else another could get the same place

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._storages[storage._cdata] = storage
        return tensor

    def saving(self) -> AbstractContextManager[None]:
        return torch.autograd.graph.saved_tensors_hooks(self.note, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


def matrix_product_rate(device: torch.device, size: int = 768, repeats: int = 5) -> float:
    """Multiply-adds a second of a matrix product, the best of a few."""
    left = torch.ones(size, size, device=device)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        product = left @ left
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return size**3 / best


def check_machine(target: Target, file: RecipeFile[DiffusionRecipe]) -> None:
    """See whether this machine can carry a recipe out.

    Raises:
        ValueError: it has not the device, or the weights and a call's activations are more than its memory that is
            free: with the recipe's line.
    """
    recipe = file.recipe
    with file.blaming("model", "device"):
        free = free_bytes(device_of(recipe.model))
    needed = weights(recipe, target.plan())
    if free is None or needed <= free * 0.05:
        return
    needed += activations(target, recipe)
    if needed > free:
        raise ValueError(
            f"{file.place('model')}this needs about {format_bytes(needed)} of memory, and {format_bytes(free)} are "
            "free: take smaller batches, another dtype or a larger machine"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    listing = Path("/proc/meminfo")
    if not listing.is_file():
        return None
    lines = listing.read_text(encoding="utf-8").splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return found[0] if found else None


def device_of(model: Model) -> torch.device:
    """Where a recipe's model runs.

    Raises:
        ValueError: this machine has no such device.
    """
    device = torch.device(model.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{device} cannot be used here ({reason}): choose another, or leave it out") from error
    return device


def _device_or_cpu(model: Model) -> torch.device:
    """To plan with, a device need not be there."""
    try:
        return device_of(model)
    except ValueError:
        return torch.device("cpu")
