"""Where Gaussians are born and die in training: gsplat's strategies, on the CPU as on CUDA.

`Adaptive` and `MarkovChain` say what is wanted, in steps and in shares of a run; a `Densifier` does it to a scene and
its optimisers, under a cap on the number of Gaussians, and has a state that checkpoints can hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from gsplat.strategy import DefaultStrategy, MCMCStrategy, ops
from gsplat.utils import normalized_quat_to_rotmat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from compress3d.splats.parameters import TrainableScene
from compress3d.splats.scene import SplatScene

Parameters = dict[str, nn.Parameter]


@dataclass(frozen=True, slots=True)
class Adaptive:
    """3DGS's adaptive density control (Kerbl et al. 2023, section 5.2) as gsplat's `DefaultStrategy` does it.

    Gaussians with large gradients on the screen are cloned (small ones) or split (large ones), faint and huge ones are
    removed, and all opacities are lowered now and then.

    Args:
        start: share of the run before which nothing is grown.
        stop: share of the run from which nothing is grown or reset any more.
        every: steps between refinements: each Gaussian should have been seen a few times since the last.
        reset_every: steps between resets of the opacity, which needs hundreds of steps to recover.
        absolute: judge by the sum of absolute gradients (Ye et al. 2024, AbsGS), so that those of the pixels that a
            Gaussian covers do not cancel.
        gradient: from which a Gaussian is grown, in halves of the image a unit of loss; 3DGS has 2e-4, AbsGS 8e-4.
        small: the largest scale that is cloned rather than split, in units of the cameras' extent.
        huge: the scale from which a Gaussian is removed, once opacities have been reset, in the same unit.
        faint: the opacity below which a Gaussian is removed.
    """

    start: float = 1 / 60
    stop: float = 1 / 2
    every: int = 100
    reset_every: int = 3000
    absolute: bool = True
    gradient: float = 8e-4
    small: float = 0.01
    huge: float = 0.1
    faint: float = 0.005

    def penalty(self, scene: SplatScene) -> Tensor | None:
        """Nothing is added to the loss."""
        return None


@dataclass(frozen=True, slots=True)
class MarkovChain:
    """3DGS as Markov chain Monte Carlo (Kheradmand et al. 2024, arXiv 2404.09591) as gsplat's `MCMCStrategy` does it.

    Dead Gaussians are moved to live ones, a twentieth of all is added until the cap is met, and centres are shaken.

    Args:
        start: share of the run before which nothing is moved or added.
        stop: share of the run from which nothing is moved or added any more; the shaking goes on.
        every: steps between refinements.
        dead: the opacity up to which a Gaussian counts as dead.
        noise: of the centres, in units of their learning rate.
        opacity_weight: of the mean opacity in the loss.
        scale_weight: of the mean scale, in world units, in the loss.
    """

    start: float = 1 / 60
    stop: float = 5 / 6
    every: int = 100
    dead: float = 0.005
    noise: float = 5e5
    opacity_weight: float = 0.01
    scale_weight: float = 0.01

    def penalty(self, scene: SplatScene) -> Tensor | None:
        """Added to the loss (section 3.4): with it unused Gaussians fade, so that they can be moved."""
        return self.opacity_weight * scene.peak_opacities().mean() + self.scale_weight * scene.scales.exp().mean()


DensityControl = Adaptive | MarkovChain


class Densifier:
    """Density control of one run.

    Args:
        control: what is wanted.
        steps: of the whole run.
        cap: the most Gaussians.
        extent: of the cameras, in world units.
    """

    def __init__(self, control: DensityControl, steps: int, cap: int, extent: float) -> None:
        self.control, self.cap = control, cap
        self._stop = round(control.stop * steps)
        first = round(control.start * steps)
        if isinstance(control, Adaptive):
            self._strategy: _Capped | MCMCStrategy = _Capped(
                prune_opa=control.faint,
                grow_grad2d=control.gradient,
                grow_scale3d=control.small,
                prune_scale3d=control.huge,
                refine_start_iter=first,
                refine_stop_iter=self._stop,
                reset_every=control.reset_every,
                refine_every=control.every,
                absgrad=control.absolute,
            )
            self._state: dict[str, Any] = self._strategy.initialize_state(scene_scale=extent)
        else:
            self._strategy = MCMCStrategy(
                cap_max=cap,
                noise_lr=control.noise,
                refine_start_iter=first,
                refine_stop_iter=self._stop,
                refine_every=control.every,
                min_opacity=control.dead,
            )
            self._state = self._strategy.initialize_state()

    def watches(self, step: int) -> bool:
        """Whether the step numbered from 1 needs the gradients of the projected centres."""
        return isinstance(self.control, Adaptive) and step < self._stop

    @property
    def absolute(self) -> bool:
        """Whether those gradients are absolute ones: `absgrad` of the rasteriser."""
        return isinstance(self.control, Adaptive) and self.control.absolute

    def after_step(
        self, scene: TrainableScene, optimizers: Mapping[str, Optimizer], step: int, meta: dict[str, Any]
    ) -> None:
        """Grow, move and remove, in place.

        Args:
            scene: after its optimisers' step.
            optimizers: one a tensor.
            step: numbered from 1.
            meta: of the render, whose `means2d` holds its gradient where `watches` asks for it.
        """
        if isinstance(self._strategy, MCMCStrategy):
            self._strategy.cap_max = self.cap
            rate = float(optimizers["means"].param_groups[0]["lr"])
            with _edited(scene, optimizers) as parameters, _without_cuda(parameters):
                self._strategy.step_post_backward(parameters, optimizers, self._state, step, meta, lr=rate)
        elif self.watches(step):
            self._strategy.cap = self.cap
            with _edited(scene, optimizers) as parameters:
                self._strategy.step_post_backward(parameters, optimizers, self._state, step, meta)
                # gsplat 1.5.3 means to do this itself, but its condition never holds.
                if step % self._strategy.reset_every == 0:
                    ops.reset_opa(parameters, optimizers, self._state, value=2 * self._strategy.prune_opa)

    def keep(self, scene: TrainableScene, optimizers: Mapping[str, Optimizer], keep: Bool[Tensor, " N"]) -> None:
        """Remove all but the Gaussians at `keep`, from scene, optimisers and state, in place."""
        state = self._state if isinstance(self.control, Adaptive) else {}
        with _edited(scene, optimizers) as parameters:
            ops.remove(parameters, optimizers, state, ~keep)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: what `load_state_dict` takes."""
        return {"cap": self.cap, "state": dict(self._state)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up the state of another run of the same settings, on `device`."""
        self.cap = state["cap"]
        self._state = {
            name: value.to(device, copy=True) if isinstance(value, Tensor) else value
            for name, value in state["state"].items()
        }


@dataclass
class _Capped(DefaultStrategy):
    """The strategy grows only the Gaussians of the largest gradients where all would be more than the cap."""

    grow_grad2d: float = 0.0002
    cap: int = 0

    def _grow_gs(self, params: Any, optimizers: Any, state: dict[str, Any], step: int) -> tuple[int, int]:
        wanted = self.grow_grad2d
        self.grow_grad2d = _threshold(state["grad2d"] / state["count"].clamp_min(1), wanted, self.cap)
        try:
            return super()._grow_gs(params, optimizers, state, step)
        finally:
            self.grow_grad2d = wanted


def _threshold(gradients: Float[Tensor, " N"], wanted: float, cap: int) -> float:
    """The least threshold, at or above `wanted`, that at most `cap` - N gradients exceed."""
    room = max(0, cap - len(gradients))
    if room >= len(gradients):
        return wanted
    return max(wanted, float(gradients.topk(room + 1).values[-1]))


def relocated(
    opacities: Float[Tensor, " M"],
    scales: Float[Tensor, "M 3"],
    ratios: Int[Tensor, " M"],
    binoms: Float[Tensor, "B B"],
) -> tuple[Float[Tensor, " M"], Float[Tensor, "M 3"]]:
    """Opacities and scales with which `ratios` Gaussians in one place look as one did (arXiv 2404.09591, equation 9).

    The equation's double sum is a single one, since binomials add up along a diagonal: with N in one place the scale is
    divided by sum over j = 1 .. N of (N over j) (-1)^(j-1) o_new^j / sqrt(j), times the old opacity, for o_new =
    1 - (1 - o)^(1/N). Arguments are those of gsplat's `compute_relocation`, which is a CUDA kernel.

    Args:
        opacities: (M,) of the Gaussians before, 0 to 1.
        scales: (M, 3) linear.
        ratios: (M,) how many are to stand for each; more than B - 1 count as B - 1.
        binoms: (B, B) binomial coefficients, row over column.
    """
    most = len(binoms) - 1
    ratios = ratios.clamp(1, most)
    before = opacities.double().clamp(max=1 - 1e-7)
    after = 1 - (1 - before) ** (1 / ratios)
    j = torch.arange(1, most + 1, device=opacities.device, dtype=torch.float64)
    signs = 1 - 2 * ((j - 1) % 2)
    terms = binoms.double()[ratios, 1:] * signs * after[:, None] ** j / j.sqrt()
    factor = before / terms.sum(dim=1)
    return after.to(opacities), scales * factor[:, None].to(scales)


def _covariances(
    quats: Tensor, scales: Tensor, compute_covar: bool, compute_preci: bool, triu: bool
) -> tuple[Tensor, None]:
    """The covariances (N, 3, 3), as gsplat's `quat_scale_to_covar_preci` gives them."""
    half = normalized_quat_to_rotmat(normalize(quats, dim=-1)) * scales[:, None]
    return half @ half.transpose(1, 2), None


@contextmanager
def _without_cuda(parameters: Parameters) -> Iterator[None]:
    """For tensors on the CPU, the two CUDA kernels that gsplat's MCMC calls by name are what they compute, in torch."""
    if parameters["means"].is_cuda:
        yield
        return
    kernels = ops.compute_relocation, ops.quat_scale_to_covar_preci
    ops.compute_relocation, ops.quat_scale_to_covar_preci = relocated, _covariances
    try:
        yield
    finally:
        ops.compute_relocation, ops.quat_scale_to_covar_preci = kernels


@contextmanager
def _edited(scene: TrainableScene, optimizers: Mapping[str, Optimizer]) -> Iterator[Parameters]:
    """The scene's parameters, to be replaced; afterwards the scene holds what they were replaced with."""
    parameters = {name: scene.get_parameter(name) for name in optimizers}
    yield parameters
    count = len(parameters["means"])
    for name, parameter in scene.named_parameters():
        if name in parameters:
            setattr(scene, name, parameters[name])
        elif len(parameter) != count:
            # Tensors without elements (the coefficients of degree 0) have no optimiser.
            setattr(scene, name, nn.Parameter(parameter.new_zeros(count, *parameter.shape[1:])))
