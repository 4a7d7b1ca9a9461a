"""Samples that a classifier is unsure of: its uncertainty guides the sampler. For training data that teaches more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.noising import Noising


def prediction_entropy(logits: Float[Tensor, "N classes"]) -> Float[Tensor, " N"]:
    """Entropy of the class probabilities, in nats."""
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class EntropyGuidance:
    """A prediction of a denoiser whose score has `strength` times the gradient of a classifier's entropy added.

    Askari-Hemmat et al. 2025, Improving the Scaling Laws of Synthetic Data with Deliberate Practice (arXiv 2502.15588):
    hard examples are made at once, instead of being picked from many. The entropy is that of the classifier's
    prediction at the clean latents that the denoiser expects, differentiated by the noisy ones, through the denoiser.

    It is called as `diffusion.trajectory.Sampler` calls a model.

    Args:
        predict: (noisy latents, time step) -> the network's prediction.
        classify: clean latents -> logits (N, classes).
        noising: how the network was trained; with a scheduler whose latents have the variance of training (DDIM, DDPM,
            DPM-Solver, rectified flows; not Euler's).
        strength: 0 changes nothing, below 0 asks for easy samples.
    """

    predict: Callable[[Tensor, Tensor], Tensor]
    classify: Callable[[Tensor], Tensor]
    noising: Noising
    strength: float = 1.0

    def __call__(self, latents: Float[Tensor, "N ..."], timestep: Tensor) -> Float[Tensor, "N ..."]:
        """The guided prediction, without a graph; unguided where there is nothing but noise to see."""
        index = int((self.noising.timesteps.double() - float(timestep.flatten()[0])).abs().argmin())
        alpha, sigma = float(self.noising.alphas[index]), float(self.noising.sigmas[index])
        if not self.strength or not alpha:
            return self.predict(latents, timestep)
        with torch.enable_grad():
            noisy = latents.detach().requires_grad_(True)
            predicted = self.predict(noisy, timestep)
            clean = self.noising.latents(predicted, noisy, torch.full((len(noisy),), index))
            entropy = prediction_entropy(self.classify(clean)).sum()
            (gradient,) = torch.autograd.grad(entropy, noisy)
        return predicted.detach() + self.strength * self._change(alpha, sigma) * gradient

    def _change(self, alpha: float, sigma: float) -> float:
        """How the prediction changes for a unit of score.

        With x = alpha z + sigma n, the score is -n / sigma; so a score that is g higher means n lower by sigma g, and z
        higher by sigma^2 g / alpha.
        """
        noise, latents = -sigma, sigma**2 / alpha
        match self.noising.prediction:
            case "epsilon":
                return noise
            case "v_prediction":
                return alpha * noise - sigma * latents
            case "sample":
                return latents
            case "flow":
                return noise - latents
