"""What every test may ask for: the shared data, splat-transform, and which tests run where."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from scripts.bench.peers import find_splat_transform


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the tests marked slow")


def pytest_configure() -> None:
    # A shell that starts the tests in the background makes them ignore Ctrl-C, which some of them send to themselves.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--all"):
            item.add_marker(pytest.mark.skip(reason="slow: give --all to run it"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device here"))


@pytest.fixture(autouse=True, scope="session")
def own_timing_turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests do not wait for what else is timed on this machine."""
    lock = tmp_path_factory.mktemp("timing") / "lock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateur.metrics.timing_turn.lock_file", lambda: lock)
        yield


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
    try:
        command = find_splat_transform().command
    except FileNotFoundError as error:
        pytest.skip(str(error))

    def convert(source: Path, target: Path, *flags: str) -> None:
        arguments = [*command, "-q", "-w", "-g", "cpu", *flags, str(source), str(target)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"splat-transform failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    return convert
