"""Token Cropr: learnt queries rank the patches, taught by auxiliary heads that are gone at inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit.tokens.costs import LayerCost
from vit.tokens.dynamic_vit import stage_of
from vit.tokens.noise import seeded_weights
from vit.tokens.pruner import Choice, DroppingPruner, Tokens


class CroprStage(nn.Module):
    """A scorer, an aggregator and an auxiliary head: cross-attention of learnt queries to the tokens.

    Keys and values are the tokens themselves, without projections and with one head, as the authors have it.

    Args:
        width: of a token.
        outputs: of the auxiliary head, for each query.
        queries: 1 for a task of one answer an image, one for each place of the answer for a dense task.
        mlp_ratio: width of the aggregator's MLP, in widths of a token.
    """

    def __init__(self, width: int, outputs: int, queries: int = 1, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))
        nn.init.trunc_normal_(self.queries, std=width**-0.5)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def logits(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch queries tokens"]:
        """Scaled products of queries and tokens, before the softmax."""
        return self.queries @ tokens.transpose(1, 2) * tokens.shape[-1] ** -0.5

    def merged_query(self) -> Float[Tensor, " width"]:
        """The one vector whose product with a token is the sum of the token's logits over all queries."""
        return self.queries.sum(dim=0) * self.queries.shape[1] ** -0.5

    def predict(
        self, tokens: Float[Tensor, "batch tokens width"], valid: Tensor | None = None
    ) -> Float[Tensor, "batch queries outputs"]:
        """What the auxiliary head makes of the tokens, of which padding is not seen."""
        logits = self.logits(tokens)
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None], -torch.inf)
        aggregated = logits.softmax(dim=-1) @ tokens
        return self.head(aggregated + self.mlp(aggregated))


class Cropr(DroppingPruner, nn.Module):
    """Token Cropr (Bergner et al. 2025, arXiv 2412.00965): drops the patches that a task's own queries look at least.

    In training each layer's auxiliary head predicts the task from the tokens there (`TokenReduction.predictions`), and
    the plain sum of the losses is added to the model's (`TokenReduction.auxiliary_loss`). The heads see detached
    tokens, so that these losses train queries, aggregators and heads alone. A patch is worth the sum of its logits over
    the queries, without the softmax; in evaluation that is one product with the merged query.

    Queries begin at random, while the model is trained already: the authors fine-tune it as a whole, with rates that
    fall from each layer to the one below (`vit.train.FineTune.layer_decay`, theirs is 0.75).

    Args:
        width: of a token.
        outputs: classes, or channels of a dense answer.
        at: layers that have a stage: those at which the schedule drops patches.
        queries: see `CroprStage`; with 1 a prediction is (batch, outputs), else (batch, queries, outputs).
        mlp_ratio: see `CroprStage`.
        aggregate_prefix: the heads see class token and registers too. The authors' code lets them; then they may look
            there instead of at the patches that they are to rank.
        seed: of the weights.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        at: Sequence[int],
        queries: int = 1,
        mlp_ratio: int = 4,
        aggregate_prefix: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.at, self.aggregate_prefix = tuple(at), aggregate_prefix
        self._arguments: dict[str, Any] = {
            "width": width,
            "outputs": outputs,
            "at": self.at,
            "queries": queries,
            "mlp_ratio": mlp_ratio,
            "aggregate_prefix": aggregate_prefix,
            "seed": seed,
        }
        with seeded_weights(seed):
            stages = {str(layer): CroprStage(width, outputs, queries, mlp_ratio) for layer in self.at}
        self.stages = nn.ModuleDict(stages)

    def scores(self, tokens: Tokens) -> Float[Tensor, "batch patches"]:
        """(batch, patches) products with the merged query."""
        stage: CroprStage = stage_of(self.stages, tokens)  # type: ignore[assignment]
        return _products(tokens, stage.merged_query())

    def choose(self, tokens: Tokens, keep: int) -> Choice:
        """Drop all but the `keep` patches of the highest scores; in training the stage's head predicts, too."""
        choice = super().choose(tokens, keep)
        if not self.training:
            return choice
        stage: CroprStage = stage_of(self.stages, tokens)  # type: ignore[assignment]
        first = 0 if self.aggregate_prefix else tokens.prefix
        valid = None if tokens.valid is None else tokens.valid[:, first:]
        prediction = stage.predict(tokens.hidden_states[:, first:].detach(), valid)
        return Choice(choice.reduction, prediction[:, 0] if prediction.shape[1] == 1 else prediction)

    def macs(self, patches: int, keep: int, layer: LayerCost) -> int:
        """One product of a vector with each patch."""
        return patches * layer.width

    def arguments(self) -> dict[str, Any]:
        """What makes the same pruner, weights aside."""
        return dict(self._arguments)

    @torch.no_grad()
    def inference(self) -> LinearScorer:
        """The same choice with the merged queries alone: aggregators and heads are dropped."""
        scorer = LinearScorer(self._arguments["width"], self.at)
        for direction, stage in zip(scorer.directions, self.stages.values(), strict=True):
            direction.copy_(stage.merged_query())  # type: ignore[operator]
        return scorer.to(next(self.parameters()).device)


class LinearScorer(DroppingPruner, nn.Module):
    """Drops the patches whose product with a layer's vector is lowest: what `Cropr` is at inference.

    The vectors are `directions`, (layers, width), at first 0; `Cropr.inference` fills them.

    Args:
        width: of a token.
        at: layers from 0, each with a vector.
    """

    def __init__(self, width: int, at: Sequence[int]) -> None:
        super().__init__()
        self.at = tuple(at)
        self.directions = nn.Parameter(torch.zeros(len(self.at), width))

    def scores(self, tokens: Tokens) -> Float[Tensor, "batch patches"]:
        """(batch, patches) products with the layer's vector."""
        if tokens.layer not in self.at:
            raise ValueError(f"the schedule drops patches at layer {tokens.layer}, but there are vectors for {self.at}")
        return _products(tokens, self.directions[self.at.index(tokens.layer)])

    def macs(self, patches: int, keep: int, layer: LayerCost) -> int:
        """One product of a vector with each patch."""
        return patches * layer.width

    def arguments(self) -> dict[str, Any]:
        """What makes the same pruner, weights aside."""
        return {"width": self.directions.shape[1], "at": self.at}


def _products(tokens: Tokens, direction: Float[Tensor, " width"]) -> Float[Tensor, "batch patches"]:
    patches = tokens.hidden_states[:, tokens.prefix :].detach()
    return nn.functional.linear(patches, direction[None])[..., 0]
