"""Dropping patches by a small network that is trained with the model, which only masks them while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.maths import straight_through
from vit.tokens.costs import LayerCost
from vit.tokens.noise import Noise, seeded_weights
from vit.tokens.pruner import Choice, DroppingPruner, Tokens


class KeepPredictor(nn.Module):
    """log-probabilities to keep and to drop each patch, from itself and the mean of all that are kept.

    Section 3.2 of arXiv 2106.02034, equations 1 to 5.

    Args:
        width: of a token, a multiple of 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"the predictor halves its width twice, so it must be a multiple of 4, got {width}")
        self.embed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.decide = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(
        self, patches: Float[Tensor, "batch patches width"], policy: Float[Tensor, "batch patches"] | None = None
    ) -> Float[Tensor, "batch patches 2"]:
        """Log-probabilities, keep first. `policy` says which patches are kept so far; None: all."""
        local, shared = self.embed(patches).chunk(2, dim=-1)
        if policy is None:
            mean = shared.mean(dim=1, keepdim=True)
        else:
            weights = policy[..., None]
            mean = (shared * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp_min(1e-6)
        return self.decide(torch.cat([local, mean.expand_as(shared)], dim=-1))


class DynamicViT(DroppingPruner, nn.Module):
    """DynamicViT (Rao et al. 2021, arXiv 2106.02034): predictors at a few layers decide which patches go.

    In training no patch goes: a Gumbel-softmax draws which are kept, straight through, and what is not is masked from
    attention (equations 10 and 11), so that training gets no faster. The loss of a layer is the squared difference of
    the share that it keeps and that of the schedule, averaged over the layers (equation 14). In evaluation the patches
    of the highest probability stay. A head that averages patches sees masked ones in training: the method is made for
    class tokens. The paper also distils logits and kept tokens from the dense model (equations 12 and 13).

    Args:
        width: of a token.
        at: layers that have a predictor: those at which the schedule drops patches.
        ratio_weight: of the loss; 2 in the paper.
        temperature: of the Gumbel-softmax.
        seed: of the weights and draws.
    """

    def __init__(
        self, width: int, at: Sequence[int], ratio_weight: float = 2.0, temperature: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.at, self.ratio_weight, self.temperature = tuple(at), ratio_weight, temperature
        self._width = width
        self.noise = Noise(seed)
        with seeded_weights(seed):
            self.predictors = nn.ModuleDict({str(layer): KeepPredictor(width) for layer in self.at})

    def begin(self) -> None:
        """A training step begins: draw anew."""
        self.noise.advance()

    def scores(self, tokens: Tokens) -> Float[Tensor, "batch patches"]:
        """(batch, patches) log-probabilities to be kept."""
        return self._log_probabilities(tokens)[..., 0]

    def choose(self, tokens: Tokens, keep: int) -> Choice:
        """In evaluation the fewer patches; in training the policy that masks the others, and its loss."""
        if not self.training:
            return super().choose(tokens, keep)
        log_probabilities = self._log_probabilities(tokens)
        soft = torch.softmax((log_probabilities + self._gumbel(tokens)) / self.temperature, dim=-1)[..., 0]
        drawn = straight_through((soft > 0.5).to(soft.dtype), soft)
        if tokens.policy is not None:
            drawn = drawn * tokens.policy[:, tokens.prefix :]
        difference = drawn.mean(dim=1) - keep / tokens.patches
        policy = torch.cat([drawn.new_ones(len(drawn), tokens.prefix), drawn], dim=1)
        return Choice(None, loss=self.ratio_weight * difference.square().mean() / len(self.at), policy=policy)

    def macs(self, patches: int, keep: int, layer: LayerCost) -> int:
        """The predictor's."""
        width = layer.width
        return patches * (width * width + width * (width // 2) + (width // 2) * (width // 4) + 2 * (width // 4))

    def arguments(self) -> dict[str, Any]:
        """What makes the same pruner, weights aside."""
        return {
            "width": self._width,
            "at": self.at,
            "ratio_weight": self.ratio_weight,
            "temperature": self.temperature,
            "seed": self.noise.seed,
        }

    def _log_probabilities(self, tokens: Tokens) -> Tensor:
        policy = None if tokens.policy is None else tokens.policy[:, tokens.prefix :]
        if tokens.valid is not None:
            valid = tokens.valid[:, tokens.prefix :].to(tokens.hidden_states.dtype)
            policy = valid if policy is None else policy * valid
        return stage_of(self.predictors, tokens)(tokens.hidden_states[:, tokens.prefix :], policy)

    def _gumbel(self, tokens: Tokens) -> Float[Tensor, "batch patches 2"]:
        patches = tokens.hidden_states[:, tokens.prefix :]
        drawn = [self.noise.uniform(2 * tokens.layer + which, patches) for which in (0, 1)]
        return -torch.log(-torch.log(torch.stack(drawn, dim=-1))).to(patches.dtype)


def stage_of(stages: nn.ModuleDict, tokens: Tokens) -> nn.Module:
    """The part that belongs to a layer; raises ValueError if the layer has none, naming those that do."""
    name = str(tokens.layer)
    if name not in stages:
        raise ValueError(f"the schedule drops patches at layer {name}, but the pruner was made for {', '.join(stages)}")
    return stages[name]
