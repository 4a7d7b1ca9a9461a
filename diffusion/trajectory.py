"""Whole denoising trajectories, sampled and differentiated in the memory of one step.

A step is a pure function `denoise(z_t, t, history) -> z_(t-1)` of a scheduler of diffusers around a model call; what a
multistep solver remembers (past model outputs) is the history. So a trajectory can be cut into steps: sample without
gradients and keep the latents (and history) before each step; then go back from the last step to the first, running one
step at a time again, with gradients (time-step gradient checkpointing, EcoDiff, arXiv 2412.02852, section 3.3). Noise,
dropout and masks of a trajectory are the same in both runs, so that the gradient is that of the trajectory which was
sampled.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diffusion.denoiser import Denoiser, without_variance
from secateur.training.seeding import generator_at, seed_at, seeded

Predict = Callable[[Tensor, Tensor], Tensor]
"""(latents (batch, ...), time step ()) -> what the scheduler expects (noise, velocity), shaped like the latents."""


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Where a trajectory stands between two steps.

    Args:
        latents: (batch, ...), two dimensions or more.
        solver: the scheduler as it is then, with all that it remembers.
    """

    latents: Tensor
    solver: Any

    def tensors(self) -> list[Tensor]:
        """The latents and the solver's history, each once: whatever it holds in the latents' shape."""
        found = {id(self.latents): self.latents}
        for value in vars(self.solver).values():
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, Tensor) and entry.is_floating_point() and entry.shape == self.latents.shape:
                    found[id(entry)] = entry
        return list(found.values())

    def with_leaves(self) -> Point:
        """The same point, all of whose tensors are leaves that require a gradient."""
        leaves = {id(tensor): tensor.detach().requires_grad_() for tensor in self.tensors()}
        return Point(leaves[id(self.latents)], _forked(self.solver, leaves))


class Sampler:
    """A scheduler of diffusers as a pure function: the one that is given never changes.

    Any scheduler whose `step` returns the latents first will do: DDIM, Euler, flow-matching Euler, DPM++ multistep,
    UniPC, PNDM, Heun, LCM; with few steps, too.

    Args:
        scheduler: the scheduler.
        steps: for its `set_timesteps`; None: its time steps are set already.
        step_options: further arguments of its `step`: `{"eta": 1.0}` for DDIM.
        timestep_options: further arguments of its `set_timesteps`: `{"mu": 1.15}` for Flux.

    Raises:
        ValueError: the scheduler refuses the options, or has no time steps.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: int | None = None,
        step_options: Mapping[str, Any] | None = None,
        timestep_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        if steps is not None:
            self._scheduler.set_timesteps(steps, **(timestep_options or {}))
        self.timesteps: Tensor = self._scheduler.timesteps
        if not len(self.timesteps):
            raise ValueError(f"{type(scheduler).__name__} has no time steps; give steps, at least 1")
        accepted = inspect.signature(self._scheduler.step).parameters
        unknown = sorted(set(step_options or {}) - set(accepted))
        if unknown:
            raise ValueError(f"{type(scheduler).__name__}.step takes no {unknown}; it takes {sorted(accepted)}")
        self.step_options = dict(step_options or {})
        self._draws = "generator" in accepted

    def __len__(self) -> int:
        """Model calls of a trajectory (twice as many with guidance); for some solvers more than `steps`."""
        return len(self.timesteps)

    def start(self, noise: Float[Tensor, "batch ..."]) -> Point:
        """The point before the first step: standard normal noise, in the scheduler's scale."""
        return Point(noise * getattr(self._scheduler, "init_noise_sigma", 1.0), self._scheduler)

    def denoise(self, predict: Predict, point: Point, index: int, seeds: Sequence[int]) -> Point:
        """One step, as a function: the same arguments give the same point.

        Args:
            predict: the model.
            point: where the trajectory stands.
            index: of the step, from 0.
            seeds: one for each sample of the batch; what the scheduler draws depends on nothing else.

        Raises:
            ValueError: the new latents are not finite.
        """
        # Clones, because some solvers (PNDM) add to their history in place.
        history = {id(tensor): tensor.clone() for tensor in point.tensors()[1:]}
        solver, timestep = _forked(point.solver, history), self.timesteps[index]
        options = dict(self.step_options)
        if self._draws:
            options["generator"] = [generator_at(seed, index + 1) for seed in seeds]
        with seeded(seed_at(seeds[0], index + 1), point.latents.device):
            scale = getattr(solver, "scale_model_input", None)
            seen = point.latents if scale is None else scale(point.latents, timestep)
            output = predict(seen, timestep)
            latents = solver.step(output, timestep, point.latents, return_dict=False, **options)[0]
        if not bool(torch.isfinite(latents).all()):
            raise ValueError(f"latents are not finite after step {index + 1} of {len(self)} (time step {timestep:g})")
        return Point(latents, solver)

    def sample(
        self, predict: Predict, noise: Float[Tensor, "batch ..."], seeds: Sequence[int]
    ) -> Float[Tensor, "batch ..."]:
        """Final latents, by plain steps: with gradients, all their activations are held.

        Raises:
            ValueError: latents are not finite; it names the step.
        """
        _check_seeds(noise, seeds)
        point = self.start(noise)
        for index in range(len(self)):
            point = self.denoise(predict, point, index, seeds)
        return point.latents

    def replayed(
        self,
        predict: Predict,
        noise: Float[Tensor, "batch ..."],
        seeds: Sequence[int],
        inputs: Sequence[Tensor] = (),
    ) -> Float[Tensor, "batch ..."]:
        """Final latents as `sample` has them, with the same gradient, in the memory of one step.

        A backward runs each step once more, and takes one vector-Jacobian product of it, for the latents and the inputs
        together. Between, the latents and the history before each step are held, and no activation.

        Args:
            predict: the model; the backward calls it again, so it opens the contexts that it needs (masks) itself.
            noise: (batch, ...) standard normal; gets a gradient if it requires one.
            seeds: one for each sample of the batch.
            inputs: what else the result is differentiated by: masks, parameters. What is not named here gets no
                gradient.

        Raises:
            ValueError: latents are not finite; it names the step.
        """
        _check_seeds(noise, seeds)
        return _Replayed.apply(self, predict, tuple(seeds), noise, *inputs)


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sampler: Sampler, predict: Predict, seeds: tuple[int, ...], noise: Tensor, *inputs: Tensor
    ) -> Tensor:
        device = noise.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.sampler, ctx.predict, ctx.seeds = sampler, predict, seeds
        ctx.points = []
        ctx.save_for_backward(noise, *inputs)
        point = sampler.start(noise.detach())
        for index in range(len(sampler)):
            ctx.points.append(point)
            point = sampler.denoise(predict, point, index, seeds)
        return point.latents

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        noise, *inputs = ctx.saved_tensors
        wanted = [tensor for tensor, needed in zip(inputs, ctx.needs_input_grad[4:], strict=True) if needed]
        totals: list[Tensor | None] = [None] * len(wanted)
        cotangents: list[Tensor | None] = [gradient]
        device, dtype, enabled = ctx.autocast
        with torch.autocast(device, dtype, enabled):
            for index in reversed(range(len(ctx.points))):
                cotangents, of_inputs = _pull_back(ctx, index, cotangents, wanted)
                totals = [_added(total, part) for total, part in zip(totals, of_inputs, strict=True)]
            of_noise = _through_start(ctx.sampler, noise, cotangents[0]) if ctx.needs_input_grad[3] else None
        found = iter(totals)
        return None, None, None, of_noise, *(next(found) if needed else None for needed in ctx.needs_input_grad[4:])


def _pull_back(
    ctx: Any, index: int, cotangents: list[Tensor | None], inputs: list[Tensor]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients by what came into a step and by the inputs, from those by what came out of it."""
    before = ctx.points[index].with_leaves()
    with torch.enable_grad():
        after = ctx.sampler.denoise(ctx.predict, before, index, ctx.seeds)
    # The last step's history leads nowhere, so only the latents have a cotangent there.
    pairs = [
        (tensor, cotangent)
        for tensor, cotangent in zip(after.tensors(), cotangents, strict=False)
        if tensor.requires_grad and cotangent is not None
    ]
    leaves = before.tensors()
    if not pairs:
        return [None] * len(leaves), [None] * len(inputs)
    outputs, vectors = zip(*pairs, strict=True)
    found = torch.autograd.grad(outputs, [*leaves, *inputs], vectors, allow_unused=True)
    return list(found[: len(leaves)]), list(found[len(leaves) :])


def _through_start(sampler: Sampler, noise: Tensor, cotangent: Tensor | None) -> Tensor | None:
    if cotangent is None:
        return None
    with torch.enable_grad():
        leaf = noise.detach().requires_grad_()
        return torch.autograd.grad(sampler.start(leaf).latents, leaf, cotangent)[0]


def _added(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    return part if total is None else total if part is None else total + part


def _forked(solver: Any, replaced: Mapping[int, Tensor]) -> Any:
    """A copy of a scheduler that shares nothing which a step changes; tensors by their id may be replaced."""
    fork = copy.copy(solver)
    for name, value in vars(solver).items():
        if isinstance(value, list):
            vars(fork)[name] = [replaced.get(id(entry), entry) for entry in value]
        elif id(value) in replaced:
            vars(fork)[name] = replaced[id(value)]
    return fork


def _check_seeds(noise: Tensor, seeds: Sequence[int]) -> None:
    if noise.dim() < 2 or len(noise) != len(seeds) or not len(seeds):
        raise ValueError(f"{len(seeds)} seeds do not fit a batch of latents {tuple(noise.shape)}: one for each sample")


@dataclass(frozen=True, eq=False)
class Guided:
    """A model of diffusers as a `Predict`: what it is conditioned on, and classifier-free guidance.

    The model runs in its own dtype; latents keep theirs. Of a model that predicts a variance, too (DiT with twice the
    channels), the first half is taken.

    Args:
        model: a network of diffusers, called as `Denoiser` calls it.
        condition: keyword arguments: `encoder_hidden_states`, `class_labels`, `added_cond_kwargs` ...
        unconditional: those without the prompt; None: there is no guidance.
        guidance: u + guidance (c - u) (Ho and Salimans, arXiv 2207.12598); at 1 the model is called once.
        timestep_scale: multiplies the time step; 0.001 for Flux, whose time is 0 to 1.
    """

    model: nn.Module
    condition: Mapping[str, Any] = field(default_factory=dict)
    unconditional: Mapping[str, Any] | None = None
    guidance: float = 1.0
    timestep_scale: float = 1.0

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """What the model predicts, shaped like the latents (batch, ...)."""
        conditional = self._predict(latents, timestep, self.condition)
        if self.unconditional is None or self.guidance == 1:
            return conditional
        unconditional = self._predict(latents, timestep, self.unconditional)
        return unconditional + self.guidance * (conditional - unconditional)

    def _predict(self, latents: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        times = timestep.to(latents.device).expand(len(latents))
        times = times if self.timestep_scale == 1 else times * self.timestep_scale
        seen = latents.to(next(self.model.parameters()).dtype)
        return without_variance(Denoiser(self.model)(seen, times, **condition), latents).to(latents.dtype)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """What a diffusion model is calibrated on: prompts or labels with a seed each, and how they are sampled.

    Args:
        sampler: the scheduler and its steps.
        shape: of one sample's latents: (channels, height, width), or (tokens, channels) for Flux.
        count: number of trajectories.
        conditions: keyword arguments of the model, a row for each trajectory: tensors (count, ...), or mappings of them
            (`added_cond_kwargs` of SDXL).
        unconditional: the same without the prompt, (count, ...) or (1, ...); None: no guidance.
        shared: further keyword arguments, the same for all (`img_ids` of Flux).
        guidance: classifier-free guidance scale.
        timestep_scale: see `Guided`.
        seed: trajectory i starts from noise of seed and i alone.
        texts: the prompt of each, for those who ask; None: unknown.

    Raises:
        ValueError: a condition has another number of rows, or there is no trajectory.
    """

    sampler: Sampler
    shape: tuple[int, ...]
    count: int
    conditions: Mapping[str, Any] = field(default_factory=dict)
    unconditional: Mapping[str, Any] | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = 1.0
    timestep_scale: float = 1.0
    seed: int = 0
    texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        _check_rows(self.conditions, (self.count,), "conditions")
        _check_rows(self.unconditional or {}, (1, self.count), "unconditional")

    def seeds(self, indices: Int[Tensor, " batch"]) -> tuple[int, ...]:
        """The seed of each of these trajectories."""
        return tuple(seed_at(self.seed, index) for index in indices.tolist())

    def noise(self, indices: Int[Tensor, " batch"], device: torch.device) -> Float[Tensor, "batch ..."]:
        """Standard normal noise, float32: a sample's is the same in every batch."""
        drawn = [torch.randn(self.shape, generator=generator_at(seed, 0)) for seed in self.seeds(indices)]
        return torch.stack(drawn).to(device)

    def predict(self, model: nn.Module, indices: Int[Tensor, " batch"]) -> Guided:
        """The model, conditioned as these trajectories are."""
        device = next(model.parameters()).device
        shared = _rows(self.shared, None, device)
        condition = {**shared, **_rows(self.conditions, indices, device)}
        without = None if self.unconditional is None else {**shared, **_rows(self.unconditional, indices, device)}
        return Guided(model, condition, without, self.guidance, self.timestep_scale)

    @torch.no_grad()
    def sample(self, model: nn.Module, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        """Final latents of these trajectories, without gradients."""
        noise = self.noise(indices, next(model.parameters()).device)
        return self.sampler.sample(self.predict(model, indices), noise, self.seeds(indices))


def _check_rows(conditions: Mapping[str, Any], counts: tuple[int, ...], where: str) -> None:
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            _check_rows(value, counts, f"{where}[{name!r}]")
        elif not isinstance(value, Tensor) or not value.dim() or len(value) not in counts:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{where}[{name!r}] must be a tensor of {counts[-1]} rows, got {got}")


def _rows(conditions: Mapping[str, Any], indices: Tensor | None, device: torch.device) -> dict[str, Any]:
    """The rows of these trajectories (None: everything), on the model's device; a single row is everybody's."""
    found: dict[str, Any] = {}
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            found[name] = _rows(value, indices, device)
        elif not isinstance(value, Tensor):
            found[name] = value
        elif indices is None:
            found[name] = value.to(device)
        else:
            rows = value[indices.to(value.device)] if len(value) > 1 else value.expand(len(indices), *value.shape[1:])
            found[name] = rows.to(device)
    return found
