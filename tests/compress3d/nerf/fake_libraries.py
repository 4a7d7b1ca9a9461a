"""Stand-ins for tiny-cuda-nn and nerfacc: what the kernels of the two libraries compute, in plain torch and Python.

Written after the formulas of tiny-cuda-nn's `encodings/grid.h` and `common_device.h`, and of nerfacc's `grid.cu` and
`utils_grid.cuh`, for those options that fields use.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from compress3d.nerf import libraries, tiny_cuda, traversal

_WORD = (1 << 32) - 1
_BATCH = 256


class Encoding(torch.nn.Module):
    """tiny-cuda-nn's grids of several levels, for points of three dimensions, in float32."""

    old = False
    """Whether to find out in 32 bits which levels are hashed, as the library did before 2.0."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: Any = None) -> None:
        super().__init__()
        config = encoding_config
        assert n_input_dims == 3 and dtype == torch.float32
        assert config["otype"] == "Grid" and config["interpolation"] == "Linear" and config["type"] in ("Hash", "Dense")
        self.features, self.hashed = config["n_features_per_level"], config["type"] == "Hash"
        if self.features not in (1, 2, 4, 8):
            raise RuntimeError("GridEncoding: n_features_per_level must be 1, 2, 4, or 8.")
        growth = np.log2(np.float32(config["per_level_scale"]))
        base = np.float32(config["base_resolution"])
        self.scales = [np.exp2(level * growth) * base - np.float32(1) for level in range(config["n_levels"])]
        self.rows = [self._rows(scale, config.get("log2_hashmap_size", 19)) for scale in self.scales]
        self.params = torch.nn.Parameter(torch.zeros(sum(self.rows) * self.features))

    def _rows(self, scale: np.float32, log2_hashmap_size: int) -> int:
        rows = (min((math.ceil(scale) + 1) ** 3, _WORD // 2) + 7) // 8 * 8
        return min(rows, 1 << log2_hashmap_size) if self.hashed else rows

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or self.params.shape != (sum(self.rows) * self.features,):
            raise RuntimeError(
                f"the module has {sum(self.rows) * self.features} params, got {tuple(self.params.shape)}"
            )
        count = len(x)
        x = torch.nn.functional.pad(x, (0, 0, 0, -count % _BATCH))
        tables = self.params.view(-1, self.features).split(self.rows)
        levels = zip(self.scales, self.rows, tables, strict=True)
        return torch.cat([self._level(x, *level) for level in levels], dim=1)[:count]

    def _level(self, x: Tensor, scale: np.float32, rows: int, table: Tensor) -> Tensor:
        # A product and a sum in float64, rounded once: that is what fmaf does.
        along = (x.double() * float(scale) + 0.5).float()
        cells = along.detach().floor()
        offsets, total = along - cells, 0
        for corner in itertools.product((0, 1), repeat=3):
            weight = torch.ones_like(x[:, 0])
            for axis in range(3):
                weight = weight * (offsets[:, axis] if corner[axis] else 1 - offsets[:, axis])
            vertices = cells.long() + torch.tensor(corner).to(x.device)
            total = total + weight[:, None] * table[self._index(vertices, math.ceil(scale) + 1, rows)]
        return total  # type: ignore[return-value]

    def _index(self, vertices: Tensor, side: int, rows: int) -> Tensor:
        stride, index = 1, torch.zeros_like(vertices[:, 0])
        if self.old:
            for axis in range(3):
                if stride <= rows:
                    index, stride = index + vertices[:, axis] * stride & _WORD, stride * side & _WORD
        elif side <= 0x659:
            index, stride = (vertices * torch.tensor([1, side, side**2]).to(vertices.device)).sum(dim=1), side**3
        else:
            stride = _WORD
        if self.hashed and rows < stride:
            i, j, k = vertices.unbind(dim=1)
            index = i ^ (j * 2654435761 & _WORD) ^ (k * 805459861 & _WORD)
        return index % rows


def traverse_grids(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    near_planes: Tensor | None = None,
    far_planes: Tensor | None = None,
    step_size: float = 1e-3,
    cone_angle: float = 0.0,
    traverse_steps_limit: int | None = None,
    over_allocate: bool = False,
    rays_mask: Tensor | None = None,
) -> tuple[None, Any, Tensor]:
    """nerfacc's, for one grid, one ray after the other: intervals of a step whose middle is in an occupied cell."""
    assert binaries.ndim == 4 and len(binaries) == 1 and not cone_angle and near_planes is not None
    assert aabbs.cpu().tolist() == [[0, 0, 0, 1, 1, 1]] and traverse_steps_limit is not None and len(rays_o)
    grid = binaries[0].cpu().numpy()
    found, ends = [], []
    for origin, direction, near in zip(
        rays_o.cpu().numpy(), rays_d.cpu().numpy(), near_planes.cpu().numpy(), strict=True
    ):
        middles, end = _intervals(grid, origin, direction, near, np.float32(step_size), traverse_steps_limit)
        found.append(middles)
        # The kernel passes by rays without a sample, and memory holds anything.
        ends.append(end if middles else np.float32(-123.0))
    counts = torch.tensor([len(middles) for middles in found])
    samples = SimpleNamespace(
        vals=torch.tensor(np.array(list(itertools.chain(*found)), np.float32)).to(rays_o.device),
        packed_info=torch.stack([counts.cumsum(0) - counts, counts], dim=1).to(rays_o.device),
        ray_indices=torch.repeat_interleave(counts).to(rays_o.device),
    )
    return None, samples, torch.tensor(np.array(ends, np.float32)).to(rays_o.device)


def _intervals(
    grid: np.ndarray, origin: np.ndarray, direction: np.ndarray, near: np.float32, step: np.float32, most: int
) -> tuple[list[np.float32], np.float32]:
    """The middles of a ray's intervals, and where the last one ends."""
    half, middles, at = step * np.float32(0.5), [], near
    with np.errstate(divide="ignore", invalid="ignore"):
        to_low, to_high = -origin / direction, (1 - origin) / direction
    enter = np.minimum(to_low, to_high).max()
    leave = np.maximum(to_low, to_high).min()
    first = max(enter, near)
    if not (enter <= leave and leave > 0 and first < leave):
        return [], near
    while at + half < first:
        at += step
    for cell, until in _cells(origin, direction, first, leave, len(grid)):
        while len(middles) < most and at + half < until:
            if grid[cell]:
                middles.append((at + (at + step)) * np.float32(0.5))
            at += step
    return middles, at


def _cells(
    origin: np.ndarray, direction: np.ndarray, first: np.float32, leave: np.float32, side: int
) -> Iterator[tuple[tuple[int, int, int], np.float32]]:
    """The cells that a ray goes through, and where it leaves each (Amanatides and Woo 1987)."""
    tiny = np.float32(1e-6)
    begin, end = origin + direction * (first + tiny), origin + direction * (leave - tiny)
    cell, last = (np.clip((point * side).astype(np.int32), 0, side - 1) for point in (begin, end))
    turn = np.sign(direction).astype(np.int32)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = ((cell + (turn > 0)) / np.float32(side) - begin).astype(np.float32) / direction + first
        width = np.abs(np.float32(1 / side) / direction)
    crossing, width = np.where(turn == 0, leave, crossing), np.where(turn == 0, leave, width)
    past = last + turn
    while True:
        i, j, k = cell.tolist()
        yield (i, j, k), min(crossing.min(), leave)
        x, y, z = crossing
        axis = 0 if x < y and x < z else (1 if y < z else 2)
        cell[axis] += turn[axis]
        crossing[axis] += width[axis]
        if cell[axis] == past[axis]:
            return


@contextmanager
def only(**found: ModuleType) -> Iterator[None]:
    """While the context is open, fields find these libraries, by name, and no others."""

    def importing(name: str) -> ModuleType:
        if name not in found:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found[name]

    def forget() -> None:
        libraries.library.cache_clear()
        tiny_cuda._grid.cache_clear()
        traversal.traversal.cache_clear()

    forget()
    try:
        with patch.object(libraries, "import_module", importing):
            yield
    finally:
        forget()


def tinycudann() -> ModuleType:
    """The one library."""
    return _module("tinycudann", Encoding=Encoding)


def nerfacc() -> ModuleType:
    """The other."""
    return _module("nerfacc", traverse_grids=traverse_grids)


def _module(name: str, **contents: object) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(contents)
    return made
