"""A linear layer some of whose outputs are always 0."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


class ScatterLinear(nn.Module):
    """A linear layer that computes some of its outputs; the others are 0.

    It stands for a layer whose width others count on: the shifts, scales and gates of an adaptive norm, of which
    EcoDiff prunes single entries (Zhang et al., arXiv 2412.02852).

    Args:
        weight: (kept, in) rows of the outputs that are computed.
        bias: (kept,) or None.
        rows: (kept,) which outputs these are.
        out_features: how many outputs there are, zeros included.
    """

    rows: Tensor

    def __init__(
        self,
        weight: Float[nn.Parameter, "kept in"],
        bias: Float[nn.Parameter, " kept"] | None,
        rows: Int64[Tensor, " kept"],
        out_features: int,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)
        self.register_buffer("rows", rows)
        self.out_features = out_features
        self.in_features = weight.shape[1]

    @classmethod
    def of(cls, layer: nn.Module, kept: Int64[Tensor, " kept"]) -> Self:
        """The layer on the parameters that it is left with, of which it had those of the rows `kept`."""
        rows = kept.to(layer.weight.device)  # type: ignore[arg-type]
        if isinstance(layer, ScatterLinear):
            rows = layer.rows[rows]
        elif not isinstance(layer, nn.Linear):
            raise ValueError(f"only a linear layer can keep its width without some outputs, not {type(layer).__name__}")
        scattered = cls(layer.weight, layer.bias, rows, layer.out_features)  # type: ignore[arg-type]
        return scattered.train(layer.training)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The outputs, zeros where a row is gone."""
        computed = F.linear(x, self.weight, self.bias)
        whole = computed.new_zeros(*computed.shape[:-1], self.out_features)
        return whole.index_copy(-1, self.rows, computed)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kept={len(self.rows)}"
