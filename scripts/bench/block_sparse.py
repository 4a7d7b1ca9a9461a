"""Measure block-sparse linear layers against dense ones, on the layers of vision transformers at 224 x 224.

Dense and sparse products alternate, and the fastest repeat counts: in milliseconds of the clock, and of processor time,
which holds on a machine that has other work too. Each part is written into the JSON as soon as it is measured; a run
can be stopped, and --missing goes on.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from command import Bench
from parts import Job
from torch import Tensor, nn

from secateur.block_sparse import BlockSparseLinear, with_blocks
from secateur.block_sparse_kernels import LANES
from secateur.blocks import BlockedCSR, from_blocked_csr
from secateur.console import Report
from secateur.training.seeding import seeded

PACKAGES = ("secateur", "torch", "numba", "llvmlite", "numpy", "transformers")
TOKENS = 197
SHAPES = {
    "ViT-S attention": (384, 384),
    "ViT-S fc1": (384, 1536),
    "ViT-S fc2": (1536, 384),
    "ViT-B attention": (768, 768),
    "ViT-B fc1": (768, 3072),
    "ViT-B fc2": (3072, 768),
}
"""Layer -> inputs and outputs."""
BLOCKS = ((16, 16), (32, 32), (64, 32))
WIDTHS = {"ViT-S": (384, 6), "ViT-B": (768, 12)}
"""Model -> hidden size and heads."""


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Args:
        quick: smallest shapes, one repeat: shows that all runs, its figures mean nothing.
    """

    quick: bool = False

    @property
    def sparsities(self) -> tuple[float, ...]:
        return (0.5,) if self.quick else (0.0, 0.3, 0.5, 0.7, 0.9)

    @property
    def repeats(self) -> int:
        return 1 if self.quick else 5

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        return BLOCKS[1:2] if self.quick else BLOCKS


def product_jobs(settings: Settings) -> dict[str, Job]:
    """Forward products, layer by layer."""
    shapes = {"tiny": (64, 64)} if settings.quick else SHAPES
    return {
        f"{name}, batch {batch}": partial(products, settings, inputs, outputs, batch * TOKENS)
        for name, (inputs, outputs) in shapes.items()
        for batch in (1, 8)
    }


def step_jobs(settings: Settings) -> dict[str, Job]:
    """Forward and backward products of one layer."""
    shapes = {"tiny": (64, 64)} if settings.quick else {"ViT-B fc1": SHAPES["ViT-B fc1"]}
    return {
        f"{name}, batch 8": partial(steps, settings, inputs, outputs, 8 * TOKENS)
        for name, (inputs, outputs) in shapes.items()
    }


def model_jobs(settings: Settings) -> dict[str, Job]:
    """Whole vision transformers, of random weights."""
    names = ("ViT-S",) if settings.quick else tuple(WIDTHS)
    return {f"{name}, batch {batch}": partial(models, settings, name, batch) for name in names for batch in (1, 8)}


SECTIONS: Mapping[str, Callable[[Settings], dict[str, Job]]] = {
    "products": product_jobs,
    "steps": step_jobs,
    "models": model_jobs,
}


def products(settings: Settings, inputs: int, outputs: int, rows: int, report: Report, folder: Path) -> dict[str, Any]:
    """A row for each block size and sparsity: the layer, torch's own sparse product, and gathered dense products."""
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))
    found = []
    for size in settings.blocks:
        for sparsity in settings.sparsities:
            report(len(found) / len(settings.blocks) / len(settings.sparsities), f"{size}, {sparsity:.0%} gone")
            layer, dense = pair(inputs, outputs, size, sparsity)
            runs: dict[str, Callable[[], Any]] = {"dense": partial(dense, x), "ours": partial(layer, x)}
            with torch.no_grad():
                times = alternated(runs | peers(layer, x), settings.repeats)
            found.append({"block": list(size), "sparsity": sparsity} | times)
    return {"inputs": inputs, "outputs": outputs, "rows_of_input": rows, "lanes": LANES, "rows": found}


def steps(settings: Settings, inputs: int, outputs: int, rows: int, report: Report, folder: Path) -> dict[str, Any]:
    """A row for each block size and sparsity: forward and backward."""
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for size in settings.blocks:
        for sparsity in settings.sparsities:
            report(len(found) / len(settings.blocks) / len(settings.sparsities), f"{size}, {sparsity:.0%} gone")
            layer, dense = pair(inputs, outputs, size, sparsity)
            runs = {"dense": partial(step, dense, x), "ours": partial(step, layer, x)}
            times = alternated(runs, settings.repeats)
            found.append({"block": list(size), "sparsity": sparsity} | times)
    return {"inputs": inputs, "outputs": outputs, "rows_of_input": rows, "lanes": LANES, "rows": found}


def models(settings: Settings, name: str, batch: int, report: Report, folder: Path) -> dict[str, Any]:
    """A row for each sparsity: a forward of the whole model, all of its blocks' linear layers sparse, 32 x 32."""
    model = vision_transformer(name, 1 if settings.quick else 12)
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    layers = {each: layer for each, layer in model.named_modules() if isinstance(layer, nn.Linear) and "layers" in each}
    found = []
    for sparsity in settings.sparsities:
        report(len(found) / len(settings.sparsities), f"{sparsity:.0%} gone")
        keep = {each: some_blocks(layer, (32, 32), sparsity, seed) for seed, (each, layer) in enumerate(layers.items())}
        sparse = with_blocks(model, keep, dense_from=1.1)
        with torch.no_grad():
            runs: dict[str, Callable[[], Any]] = {"dense": partial(model, pixels), "ours": partial(sparse, pixels)}
            found.append({"sparsity": sparsity} | alternated(runs, min(settings.repeats, 3)))
    return {"batch": batch, "layers": len(layers), "rows": found}


def pair(inputs: int, outputs: int, size: tuple[int, int], sparsity: float) -> tuple[BlockSparseLinear, nn.Linear]:
    """A block-sparse layer with blocks chosen at random, and the dense one."""
    with seeded(0, torch.device("cpu")):
        dense = nn.Linear(inputs, outputs)
    return BlockSparseLinear.of(dense, some_blocks(dense, size, sparsity)), dense


def some_blocks(layer: nn.Linear, size: tuple[int, int], sparsity: float, seed: int = 0) -> Tensor:
    """(high, wide) bool: blocks at random, exactly so many."""
    high, wide = layer.out_features // size[0], layer.in_features // size[1]
    order = torch.randperm(high * wide, generator=torch.Generator().manual_seed(seed))
    return (order < round((1 - sparsity) * high * wide)).view(high, wide)


def peers(layer: BlockSparseLinear, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The same product by other means: MKL's blocked CSR, and dense products with the inputs that a row reads.

    Both get their input transposed beforehand, as they like it best.
    """
    matrix = layer.matrix()
    weight, inputs = from_blocked_csr(matrix).detach(), x.T.contiguous()
    height, width = matrix.values.shape[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blocked = weight.to_sparse_bsr((height, width))
    gathered = _gathered(matrix, weight)

    def by_gathering() -> Tensor:
        out = torch.empty(layer.out_features, len(x))
        for row, (columns, part) in enumerate(gathered):
            torch.mm(part, inputs.index_select(0, columns), out=out[row * height : (row + 1) * height])
        return out

    # MKL knows square blocks alone.
    return {"gathered": by_gathering} | ({"torch BSR": lambda: blocked @ inputs} if height == width else {})


def _gathered(matrix: BlockedCSR, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
    height, width = matrix.values.shape[1:]
    found = []
    for row, kept in enumerate(matrix.kept()):
        columns = (kept.nonzero() * width + torch.arange(width)).flatten()
        found.append((columns, weight[row * height : (row + 1) * height, columns].contiguous()))
    return found


def step(layer: nn.Module, x: Tensor) -> None:
    """Forward and backward, of the input and the weight."""
    layer.zero_grad()
    x.grad = None
    layer(x).square().sum().backward()


def vision_transformer(name: str, layers: int) -> nn.Module:
    """A transformers ViT with patches of 16 at 224 x 224, of random weights."""
    from transformers import ViTConfig, ViTModel

    width, heads = WIDTHS[name]
    config = ViTConfig(
        hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=4 * width
    )
    with seeded(0, torch.device("cpu")):
        return ViTModel(config, add_pooling_layer=False).eval()


def alternated(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """The fastest of the repeats of each, one after another, in milliseconds of the clock and of the processor."""
    times: dict[str, dict[str, float]] = {name: {"ms": float("inf"), "cpu_ms": float("inf")} for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            clock, processor = time.perf_counter(), time.process_time()
            run()
            spent = {"ms": time.perf_counter() - clock, "cpu_ms": time.process_time() - processor}
            # The first of all warms up.
            if repeat:
                times[name] = {key: min(times[name][key], 1000 * spent[key]) for key in spent}
    return times


BENCH = Bench("block_sparse", __doc__, SECTIONS, PACKAGES, threads=1)


def main(arguments: list[str]) -> None:
    options = BENCH.parse(BENCH.parser(), arguments)
    BENCH.run(options, Settings(options.quick))


if __name__ == "__main__":
    main(sys.argv[1:])
