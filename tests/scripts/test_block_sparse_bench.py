"""The bench of block-sparse layers: all its ways to multiply agree, and a quick run writes every section."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The bench, imported as its script does."""
    sys.path.insert(0, str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module("block_sparse")
    sys.path.remove(str(BENCH))
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and BENCH in Path(file).parents:
            del sys.modules[name]


@pytest.mark.parametrize("size", [(16, 16), (64, 32)])
def test_all_products_agree(bench: ModuleType, size: tuple[int, int]) -> None:
    layer, dense = bench.pair(128, 64, size, 0.5)
    assert layer.multiply_adds() == 64 * 128 // 2
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(0))
    for run in bench.peers(layer, x).values():
        torch.testing.assert_close(run().T, layer(x) - layer.bias, rtol=1e-4, atol=1e-4)
    assert dense.weight.shape == (64, 128)


def test_a_quick_run_writes_its_sections(bench: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "a.json"
    bench.main(["--quick", "--output", str(output)])
    results = json.loads(output.read_text())
    assert set(results) == {"products", "steps", "models"}
    for section in results.values():
        for part in section.values():
            assert part["rows"] and part["conditions"]["quick"] is True
            assert all(row[name]["cpu_ms"] > 0 for row in part["rows"] for name in ("dense", "ours"))
    options = bench.parse(["--quick", "--missing", "--output", str(output)])
    assert bench.chosen(options, results) == []
