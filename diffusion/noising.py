"""How training adds noise, what the network shall predict of it, and how much each time step counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a network predicts: the noise; alpha noise - sigma latents; the latents; noise - latents (rectified flow)."""


class Weighting(ABC):
    """How much the squared error of the latents counts at a signal-to-noise ratio."""

    @abstractmethod
    def of_latents(self, snr: Float[Tensor, " *N"]) -> Float[Tensor, " *N"]:
        """Factors of the squared error of the latents that a prediction amounts to; `snr` is alpha^2 / sigma^2."""


@dataclass(frozen=True)
class NoiseLoss(Weighting):
    """The error of the noise that a prediction amounts to (Ho et al.: DDPM, arXiv 2006.11239, eq. 14)."""

    def of_latents(self, snr: Float[Tensor, " *N"]) -> Float[Tensor, " *N"]:
        """snr, for noise is (noisy latents - alpha latents) / sigma."""
        return snr


@dataclass(frozen=True)
class VelocityLoss(Weighting):
    """The error of v = alpha noise - sigma latents (Salimans and Ho: progressive distillation, arXiv 2202.00512).

    Noise that does not keep the variance (rectified flow) is scaled so that it does: alpha^2 + sigma^2 = 1.
    """

    def of_latents(self, snr: Float[Tensor, " *N"]) -> Float[Tensor, " *N"]:
        """snr + 1."""
        return snr + 1


@dataclass(frozen=True)
class LatentLoss(Weighting):
    """The error of the clean latents, at every time step alike."""

    def of_latents(self, snr: Float[Tensor, " *N"]) -> Float[Tensor, " *N"]:
        """1."""
        return torch.ones_like(snr)


@dataclass(frozen=True)
class MinSnr(Weighting):
    """min(snr, gamma): time steps with little noise no longer outweigh all others.

    Hang et al.: Efficient Diffusion Training via Min-SNR Weighting Strategy (arXiv 2303.09556), section 3.4; the same
    loss whatever the network predicts.

    Args:
        gamma: the greatest weight; 5 in the paper.

    Raises:
        ValueError: `gamma` is not above 0.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma must be above 0, got {self.gamma}")

    def of_latents(self, snr: Float[Tensor, " *N"]) -> Float[Tensor, " *N"]:
        """min(snr, gamma)."""
        return snr.clamp(max=self.gamma)


@dataclass(frozen=True, eq=False)
class Noising:
    """noisy = alpha latents + sigma noise, for each time step that training draws from.

    Attributes:
        alphas: (T,) float64.
        sigmas: (T,) float64.
        timesteps: (T,) what the network is told.
        prediction: what it predicts.
    """

    alphas: Float[Tensor, " T"]
    sigmas: Float[Tensor, " T"]
    timesteps: Shaped[Tensor, " T"]
    prediction: Prediction

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {get_args(Prediction)}, got {self.prediction!r}")
        if not len(self.alphas) == len(self.sigmas) == len(self.timesteps) > 0:
            raise ValueError(
                f"alphas, sigmas and timesteps must be as many, and some: got {len(self.alphas)}, {len(self.sigmas)} "
                f"and {len(self.timesteps)}"
            )

    @classmethod
    def of(cls, scheduler: Any) -> Noising:
        """The noise that a network of this diffusers scheduler is trained with.

        Args:
            scheduler: with `alphas_cumprod` (DDPM, DDIM, Euler, DPM-Solver ...), or a rectified flow with `sigmas`
                (`FlowMatchEulerDiscreteScheduler`). Steps that it has been set to for sampling do not matter.

        Raises:
            ValueError: it is neither, or predicts what has no name here.
        """
        fresh = type(scheduler).from_config(scheduler.config)
        if hasattr(fresh, "alphas_cumprod"):
            signal = fresh.alphas_cumprod.double()
            kind = fresh.config.get("prediction_type", "epsilon")
            return cls(signal.sqrt(), (1 - signal).sqrt(), torch.arange(len(signal)), kind)
        if hasattr(fresh, "sigmas") and "Flow" in type(fresh).__name__:
            sigmas = torch.as_tensor(fresh.sigmas).double()
            return cls(1 - sigmas, sigmas, torch.as_tensor(fresh.timesteps), "flow")
        raise ValueError(f"{type(scheduler).__name__} has neither alphas_cumprod nor the sigmas of a rectified flow")

    def __len__(self) -> int:
        return len(self.timesteps)

    def add(
        self, latents: Float[Tensor, "N ..."], noise: Float[Tensor, "N ..."], indices: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N ..."]:
        """Noisy latents at the time steps of these indices."""
        alphas, sigmas = self._at(latents, indices)
        return alphas * latents + sigmas * noise

    def target(
        self, latents: Float[Tensor, "N ..."], noise: Float[Tensor, "N ..."], indices: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N ..."]:
        """What the network shall predict."""
        alphas, sigmas = self._at(latents, indices)
        match self.prediction:
            case "epsilon":
                return noise
            case "v_prediction":
                return alphas * noise - sigmas * latents
            case "sample":
                return latents
            case "flow":
                return noise - latents

    def latents(
        self, predicted: Float[Tensor, "N ..."], noisy: Float[Tensor, "N ..."], indices: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N ..."]:
        """The clean latents that a prediction amounts to."""
        alphas, sigmas = self._at(noisy, indices)
        match self.prediction:
            case "epsilon":
                return (noisy - sigmas * predicted) / alphas
            case "v_prediction":
                return alphas * noisy - sigmas * predicted
            case "sample":
                return predicted
            case "flow":
                return noisy - sigmas * predicted

    def snr(self) -> Float[Tensor, " T"]:
        """alpha^2 / sigma^2 of every time step, float64."""
        return (self.alphas / self.sigmas) ** 2

    def weights(self, weighting: Weighting) -> Float[Tensor, " T"]:
        """Factors of the squared error of what the network predicts that make it the error `weighting` asks for.

        Raises:
            ValueError: at some time step there is no such factor: a network that predicts noise says nothing of the
                latents where there is only noise.
        """
        snr = self.snr()
        asked, own = weighting.of_latents(snr), self._own(snr)
        weights = torch.where(asked == own, 1.0, asked / own)
        if not weights.isfinite().all():
            worst = int((~weights.isfinite()).nonzero()[0])
            raise ValueError(
                f"{weighting} has no finite weight for {self.prediction} at time step {float(self.timesteps[worst]):g}"
            )
        return weights

    def _own(self, snr: Tensor) -> Tensor:
        """Squared error of the prediction over that of the latents."""
        match self.prediction:
            case "epsilon":
                return NoiseLoss().of_latents(snr)
            case "v_prediction":
                return VelocityLoss().of_latents(snr)
            case "sample":
                return LatentLoss().of_latents(snr)
            case "flow":
                return (1 + snr.sqrt()) ** 2

    def _at(self, like: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *([1] * (like.dim() - 1)))
        index = indices.to(self.alphas.device)
        return self.alphas[index].to(like).reshape(shape), self.sigmas[index].to(like).reshape(shape)
