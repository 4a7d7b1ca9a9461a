"""What a kept block costs: power, which is linear in the kept blocks by assumption, and time, which is measured."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from secateur.block_sparse import BlockSparseLinear
from secateur.metrics.speed import pinned_threads


@dataclass(frozen=True)
class BlockLayer:
    """A linear layer in blocks.

    Args:
        name: in the network.
        out_features: of the layer.
        in_features: of the layer.
        rows: height of a block.
        columns: width of a block.
        tokens: rows of input in a batch of the calibration, on average.
    """

    name: str
    out_features: int
    in_features: int
    rows: int
    columns: int
    tokens: float

    @property
    def blocks(self) -> int:
        return self.out_features // self.rows * (self.in_features // self.columns)

    @property
    def macs(self) -> float:
        """Multiply-adds of one block in a batch."""
        return self.rows * self.columns * self.tokens


def input_width(layer: BlockLayer) -> float:
    """Power of a kept block, in any unit: the layer's inputs over 16, LPViT's model (arXiv 2407.02068)."""
    return layer.in_features / 16


@dataclass(frozen=True)
class BlockTime:
    """A line through measured times of a layer: base_ms + per_block_ms * kept blocks.

    Args:
        base_ms: what the layer takes without a block.
        per_block_ms: what each block adds.
        largest_miss: of the line, relative to the longest time that was measured.
    """

    base_ms: float
    per_block_ms: float
    largest_miss: float


def measure_block_time(
    layer: BlockLayer,
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7),
    *,
    repeats: int = 5,
    threads: int | None = None,
) -> BlockTime:
    """Time `BlockSparseLinear` on one batch of the layer's size, with blocks at random, on the CPU.

    Args:
        layer: the sizes.
        shares: of kept blocks, at least two, which the line is fitted to.
        repeats: of each, of which the fastest counts.
        threads: that torch and numba may use; None: as many as they use now.
    """
    high, wide = layer.out_features // layer.rows, layer.in_features // layer.columns
    generator = torch.Generator().manual_seed(0)
    dense = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features)
    nn.init.normal_(dense.weight, generator=generator)
    nn.init.zeros_(dense.bias)
    order = torch.randperm(high * wide, generator=generator)
    x = torch.randn(max(1, round(layer.tokens)), layer.in_features, generator=generator)
    counts, times = [], []
    with pinned_threads(threads), torch.no_grad():
        for share in shares:
            count = round(share * layer.blocks)
            sparse = BlockSparseLinear.of(dense, (order < count).view(high, wide))
            sparse(x)
            counts.append(count)
            times.append(min(_seconds(sparse, x) for _ in range(repeats)) * 1000)
    if len(set(counts)) < 2:
        raise ValueError(f"a line needs two counts of blocks or more, {shares} of {layer.blocks} are {counts}")
    slope, base = np.polyfit(counts, times, 1)
    miss = np.abs(base + slope * np.array(counts) - np.array(times)).max() / max(times)
    return BlockTime(max(0.0, float(base)), max(0.0, float(slope)), float(miss))


def _seconds(layer: nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    layer(x)
    return time.perf_counter() - start
