"""What every test may ask for: the shared data, splat-transform, and which tests run where."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SPLAT_TRANSFORM_PACKAGE = "@playcanvas/splat-transform@3.7.0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--all"):
            item.add_marker(pytest.mark.skip(reason="slow: give --all to run it"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device here"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scenes that stands beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real scenes: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def splat_transform() -> Callable[[Path, Path], None]:
    """`convert(source, target, *flags)` through PlayCanvas's splat-transform."""
    command = _find_splat_transform()

    def convert(source: Path, target: Path, *flags: str) -> None:
        arguments = [*command, "-q", "-w", "-g", "cpu", *flags, str(source), str(target)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"splat-transform failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    return convert


def _find_splat_transform() -> list[str]:
    if "SPLAT_TRANSFORM" in os.environ:
        return [os.environ["SPLAT_TRANSFORM"]]
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("splat-transform needs node and npm, which are not installed")
    if _runs(["npx", "--no-install", SPLAT_TRANSFORM_PACKAGE, "--version"]):
        return ["npx", "--no-install", SPLAT_TRANSFORM_PACKAGE]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur" / "splat-transform"
    installed = home / "node_modules" / ".bin" / "splat-transform"
    if not _runs([str(installed), "--version"]):
        home.mkdir(parents=True, exist_ok=True)
        _runs(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home), SPLAT_TRANSFORM_PACKAGE])
    if not _runs([str(installed), "--version"]):
        pytest.skip(f"npm could not install {SPLAT_TRANSFORM_PACKAGE}; set SPLAT_TRANSFORM to its executable")
    return [str(installed)]


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=180).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
