"""What the bench measures against: PlayCanvas's splat-transform, and the plain rasteriser that ours started from."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
SPLAT_TRANSFORM_PACKAGE = "@playcanvas/splat-transform@3.7.0"


class PeerError(RuntimeError):
    """splat-transform failed, or did not finish; says why in a line that names no place on this machine."""


@dataclass(frozen=True, slots=True)
class Process:
    """What a program took: wall seconds from start to exit, its peak memory, and what it wrote."""

    seconds: float
    peak_bytes: int
    output: str

    @property
    def own_seconds(self) -> float | None:
        """What splat-transform says that it took ("done in 1m2.345s"); None where it says nothing."""
        found = re.search(r"done in (?:(\d+)h)?(?:(\d+)m)?([\d.]+)s", self.output)
        if not found:
            return None
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return 3600 * hours + 60 * minutes + seconds


@dataclass(frozen=True, slots=True)
class SplatTransform:
    """splat-transform on this machine.

    Args:
        command: what starts it.
        version: its own and node's.
    """

    command: tuple[str, ...]
    version: str

    def __call__(self, source: Path, *actions: str, limit_seconds: float, target: Path) -> Process:
        """Run it on `source`, without a GPU.

        Raises:
            PeerError: it has not finished after `limit_seconds`, or it failed.
        """
        arguments = [*self.command, "-w", "--no-tty", "-g", "cpu", str(source), *actions, str(target)]
        try:
            return run_process(arguments, limit_seconds)
        except (TimeoutError, RuntimeError) as error:
            raise PeerError(why(error)) from error


def why(error: Exception) -> str:
    """The first line of what `run_process` raised: the rest names places on this machine."""
    return str(error).partition("\n")[0]


def run_process(command: Sequence[str], limit_seconds: float) -> Process:
    """Run a program to its end, on as many threads as torch has here, and measure it alone.

    Raises:
        TimeoutError: it has not finished after `limit_seconds`; it is ended.
        RuntimeError: its exit status is not 0.
    """
    # Not in this process's environment: numba refuses to compile once its variable there is another than at the start.
    threads = dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"), str(torch.get_num_threads()))
    with TemporaryFile() as written:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env={**os.environ, **threads})
        try:
            usage = None
            while usage is None:
                if time.perf_counter() - start > limit_seconds:
                    raise TimeoutError(f"not finished in {limit_seconds:g} s")
                time.sleep(0.005)
                # Of this child alone, which getrusage(RUSAGE_CHILDREN) would not tell.
                pid, status, used = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    usage, process.returncode = used, os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - start
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        written.seek(0)
        output = written.read().decode(errors="replace")
    if process.returncode != 0:
        raise RuntimeError(f"failed with status {process.returncode}\n{' '.join(command)}\n{output[-2000:]}")
    return Process(seconds, usage.ru_maxrss * 1024, output)


def find_splat_transform() -> SplatTransform:
    """$SPLAT_TRANSFORM, or what npx or an earlier call installed, or what npm installs now into the user's cache.

    Raises:
        FileNotFoundError: there is none, and why.
    """
    if not shutil.which("node"):
        raise FileNotFoundError("splat-transform needs node, which is not installed")
    node = _version(["node"])
    for command in _commands():
        version = _version(command)
        if version:
            return SplatTransform(tuple(command), f"{version}, node {node}")
    raise FileNotFoundError(f"npm could not install {SPLAT_TRANSFORM_PACKAGE}; set SPLAT_TRANSFORM to its executable")


def load_prototype() -> ModuleType:
    """The prototype rasteriser of the shared folder.

    Raises:
        FileNotFoundError: the shared folder is absent.
    """
    source = SHARED / "bench" / "prototype_raster.py"
    if not source.is_file():
        raise FileNotFoundError(f"{source.parent.name}/{source.name} is absent beside the checkout")
    # Its compiled code is cached beside it, and the shared folder is not ours to write to.
    copy = ROOT / "out" / "bench" / source.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    if not copy.is_file() or copy.read_bytes() != source.read_bytes():
        shutil.copyfile(source, copy)
    specification = importlib.util.spec_from_file_location(copy.stem, copy)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # numba finds what it cached through the module's name.
    sys.modules[copy.stem] = module
    specification.loader.exec_module(module)
    return module


def _commands() -> Iterator[list[str]]:
    """Ways to start splat-transform, each tried only when those before it do not work."""
    if "SPLAT_TRANSFORM" in os.environ:
        yield [os.environ["SPLAT_TRANSFORM"]]
        return
    if not shutil.which("npm"):
        return
    yield ["npx", "--no-install", SPLAT_TRANSFORM_PACKAGE]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur" / "splat-transform"
    installed = [str(home / "node_modules" / ".bin" / "splat-transform")]
    yield installed
    home.mkdir(parents=True, exist_ok=True)
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home), SPLAT_TRANSFORM_PACKAGE]
    subprocess.run(install, capture_output=True, timeout=180)
    yield installed


def _version(command: list[str]) -> str | None:
    """What `command --version` says; None when it cannot be run."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=180)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip() or done.stderr.strip()) if done.returncode == 0 else None
