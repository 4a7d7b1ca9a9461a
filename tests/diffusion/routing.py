"""A network some of whose prompts need all of its units, and others few; with latents, prompts and a task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusion.aptp.captions import Captioned
from diffusion.noising import Noising
from diffusion.train import DenoisingTask
from secateur.surgery import Network
from secateur.units import Member, UnitGroup

HIDDEN, EASY = 16, 2


class Reaching(nn.Module):
    """Hard prompts, conditions (1, 0), use all hidden units; easy ones, (0, 1), the first two."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up, self.down = (nn.utils.skip_init(nn.Linear, *sizes) for sizes in ((4, HIDDEN), (HIDDEN, 4)))
        self.reach = nn.utils.skip_init(nn.Linear, 2, HIDDEN, bias=False)
        with torch.no_grad():
            for layer in (self.up, self.down):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 2)
                layer.bias.zero_()
            self.reach.weight.copy_(torch.ones(HIDDEN, 2))
            self.reach.weight[EASY:, 1] = 0

    def forward(self, sample: Tensor, timestep: Tensor, difficulty: Tensor, return_dict: bool = True) -> Any:
        return (self.down(torch.relu(self.up(sample)) * self.reach(difficulty)),)


def reaching() -> Network:
    members = (Member("up.weight"), Member("up.bias"), Member("reach.weight"), Member("down.weight", 1))
    inputs = {"sample": torch.zeros(1, 4), "timestep": torch.zeros(1), "difficulty": torch.zeros(1, 2)}
    return Network(Reaching().eval(), [UnitGroup("hidden", HIDDEN, members)], inputs)


def captioned(each: int = 4, samples: int = 64, width: int = 8) -> Captioned:
    """`each` hard prompts and then as many easy ones, alike within their kind; as many samples of either."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.eye(width)[:2].repeat_interleave(each, 0)
    embeddings = nn.functional.normalize(centres + 0.1 * torch.randn(2 * each, width, generator=generator), dim=1)
    texts = tuple(f"{kind} {number}" for kind in ("hard", "easy") for number in range(each))
    prompts = torch.arange(samples) % (2 * each)
    latents = torch.randn(samples, 4, generator=generator)
    return Captioned(latents, prompts, texts, embeddings, {"difficulty": torch.eye(2).repeat_interleave(each, 0)})


def task() -> DenoisingTask:
    """Two time steps, almost without noise."""
    return DenoisingTask(Noising(torch.ones(2).double(), torch.full((2,), 0.1).double(), torch.arange(2), "sample"))
