"""Benches are imported in tests as their scripts import them, and forgotten afterwards."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
_NAMED_AS_PACKAGES = ("diffusion", "vit")


@pytest.fixture(scope="module")
def bench() -> Iterator[Callable[[str], ModuleType]]:
    """Import one of the benches' modules by name."""
    path, before = list(sys.path), set(sys.modules)
    # Last: two of the scripts have the names of packages.
    sys.path.append(str(BENCH))
    yield _load
    sys.path[:] = path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and BENCH in Path(file).parents:
            del sys.modules[name]


def _load(name: str) -> ModuleType:
    if name not in _NAMED_AS_PACKAGES:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"bench_of_{name}", BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
