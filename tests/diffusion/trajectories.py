"""Short trajectories of the tiny models, for tests."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from diffusion.trajectory import Sampler, Trajectories
from tests.diffusion.models import inputs

CPU = torch.device("cpu")

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction"), {}),
    "ddim_eta": (DDIMScheduler(prediction_type="sample"), {"eta": 1.0}),
    "euler": (EulerDiscreteScheduler(prediction_type="v_prediction"), {}),
    "dpm_multistep": (DPMSolverMultistepScheduler(prediction_type="v_prediction"), {}),
    "dpm_multistep_3": (DPMSolverMultistepScheduler(solver_order=3), {}),
    "dpm_sde": (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), {}),
    "flow_euler": (FlowMatchEulerDiscreteScheduler(), {}),
}


def sampler(name: str, steps: int) -> Sampler:
    """A sampler of `SCHEDULERS`."""
    scheduler, options = SCHEDULERS[name]
    return Sampler(scheduler, steps, options)


def trajectories(
    family: str = "dit", count: int = 4, steps: int = 4, name: str = "ddim", guidance: float = 1.0, seed: int = 0
) -> Trajectories:
    """Trajectories of a family of `tests.diffusion.models`, whose conditions differ."""
    arguments = inputs(family, count)
    latents = next(iter(arguments.values()))
    rest = {key: value for key, value in arguments.items() if key not in ("sample", "hidden_states", "timestep")}
    shared = {key: rest.pop(key) for key in list(rest) if not _by_row(rest[key], count)}
    scale = 0.001 if family == "flux" else 1.0
    null = {key: _first_of(value) for key, value in rest.items()} if guidance != 1 else None
    return Trajectories(
        sampler(name, steps), tuple(latents.shape[1:]), count, rest, null, shared, guidance, scale, seed
    )


def _by_row(value: Any, count: int) -> bool:
    parts = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(part, Tensor) and len(part) == count for part in parts)


def _first_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _first_of(part) for key, part in value.items()}
    return value[:1] * 0
