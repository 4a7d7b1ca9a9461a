"""The bench of block-sparse layers: all its ways to multiply agree, and a quick run writes every section."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.mark.parametrize("size", [(16, 16), (64, 32)])
def test_all_products_agree(bench: Callable[[str], ModuleType], size: tuple[int, int]) -> None:
    block_sparse = bench("block_sparse")
    layer, dense = block_sparse.pair(128, 64, size, 0.5)
    assert layer.multiply_adds() == 64 * 128 // 2
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(0))
    for run in block_sparse.peers(layer, x).values():
        torch.testing.assert_close(run().T, layer(x) - layer.bias, rtol=1e-4, atol=1e-4)
    assert dense.weight.shape == (64, 128)


def test_a_quick_run_writes_its_sections(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    output = tmp_path / "a.json"
    bench("block_sparse").main(["--quick", "--output", str(output)])
    results = json.loads(output.read_text())
    assert set(results) == {"products", "steps", "models"}
    for section in results.values():
        for part in section.values():
            assert part["rows"] and part["conditions"]["quick"] is True
            assert all(row[name]["cpu_ms"] > 0 for row in part["rows"] for name in ("dense", "ours"))
