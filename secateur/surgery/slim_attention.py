"""What `nn.MultiheadAttention` becomes when heads are cut from it."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SlimAttention(nn.Module):
    """Self- or cross-attention whose heads together are narrower than its input.

    `nn.MultiheadAttention` ties the two: heads times head width must be the width of its input, so it cannot lose a
    head. This module has the same parameters under the same names (`in_proj_weight`, `in_proj_bias`, `out_proj`), the
    same call and the same result; a mask is True where attention is *not* allowed, or floats that are added.

    Args:
        in_proj_weight: (3 * num_heads * head_dim, width), rows of q, then k, then v.
        in_proj_bias: (3 * num_heads * head_dim,) or None.
        out_proj: from num_heads * head_dim to width.
        head_dim: rows of each head; their number follows from it.
        dropout: probability of dropping an attention weight in training.
        batch_first: inputs are (batch, tokens, width) rather than (tokens, batch, width).
    """

    # nn.TransformerEncoderLayer asks for these before it takes its fast path, which knows only nn.MultiheadAttention.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        in_proj_weight: nn.Parameter,
        in_proj_bias: nn.Parameter | None,
        out_proj: nn.Linear,
        head_dim: int,
        dropout: float = 0.0,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.in_proj_weight = in_proj_weight
        self.in_proj_bias: nn.Parameter | None
        self.register_parameter("in_proj_bias", in_proj_bias)
        self.out_proj = out_proj
        self.head_dim = head_dim
        self.num_heads = len(in_proj_weight) // 3 // head_dim
        self.dropout = dropout
        self.batch_first = batch_first

    @classmethod
    def like(cls, attention: nn.MultiheadAttention) -> Self:
        """The same attention on the same parameters, which may have lost the rows of some heads.

        Raises:
            ValueError: the attention has other widths for keys and values, or learnt or zero keys beside the tokens.
        """
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                "heads are cut only where q, k and v share a width and no key is added (kdim, bias_k, ...)"
            )
        slim = cls(
            attention.in_proj_weight,
            attention.in_proj_bias,
            attention.out_proj,
            attention.head_dim,
            attention.dropout,
            attention.batch_first,
        )
        return slim.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`, whose shapes these are: the output, and the weights where wanted."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)
        bias = self._bias(q, k, key_padding_mask, attn_mask)
        weights = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            weights = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(weights if bias is None else weights + bias, dim=-1)
            weights = F.dropout(weights, dropout)
            mixed = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, bias, dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _project(self, *inputs: Tensor) -> list[Tensor]:
        """(batch, heads, tokens, head width) queries, keys and values."""
        inner = self.num_heads * self.head_dim
        weights = self.in_proj_weight.split(inner)
        bias: Tensor | None = self.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.split(inner)
        projected = [F.linear(x, weight, bias) for x, weight, bias in zip(inputs, weights, biases, strict=True)]
        return [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in projected]

    def _bias(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """The two masks as one sum to add to the logits, (batch or 1, heads or 1, queries, keys)."""
        bias = None
        if padding is not None:
            bias = _additive(padding, q)[:, None, None, :]
        if mask is not None:
            shaped = _additive(mask, q)
            shaped = self._per_head(shaped, len(q)) if shaped.dim() == 3 else shaped[None, None]
            bias = shaped if bias is None else bias + shaped
        return bias if bias is None else bias.expand(len(q), -1, q.shape[2], k.shape[2])

    def _per_head(self, mask: Tensor, batch: int) -> Tensor:
        heads = len(mask) // batch
        if heads != self.num_heads:
            raise ValueError(f"attn_mask is for {heads} heads, but {self.num_heads} are left; give one mask for all")
        return mask.reshape(batch, heads, *mask.shape[1:])


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
