"""Every diffusers network under one call: latents, time steps and conditions in, one tensor out."""

from __future__ import annotations

from inspect import signature
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn


class Denoiser(nn.Module):
    """Calls `network`, a diffusers UNet or transformer, by names: the first argument of its `forward` is the latents.

    The wrapper has no weights of its own; names of modules within it begin with "network.".

    Args:
        network: its `forward` takes `timestep` and `return_dict`.

    Raises:
        ValueError: `network` is no such network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        names = list(signature(network.forward).parameters)
        if not names or "timestep" not in names:
            raise ValueError(f"{type(network).__name__}.forward has no argument 'timestep': no network of diffusers")
        self.network = network
        self._latents = names[0]

    def forward(
        self, latents: Float[Tensor, "N C H W"], timesteps: Shaped[Tensor, " N"], **conditions: Any
    ) -> Float[Tensor, "N C H W"]:
        """What the network predicts.

        Args:
            latents: noisy ones; (N, tokens, channels) where the network takes packed latents.
            timesteps: one a sample.
            conditions: further arguments of the network by name: `encoder_hidden_states`, `class_labels`, ...
        """
        arguments = {self._latents: latents, "timestep": timesteps, **conditions}
        return self.network(**arguments, return_dict=False)[0]


def without_variance(predicted: Float[Tensor, "N ..."], latents: Float[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
    """The prediction alone, shaped like the latents, of a network that predicts a variance, too: DiT has both."""
    channels = latents.shape[1]
    return predicted[:, :channels] if predicted.dim() > 1 and predicted.shape[1] == 2 * channels else predicted
