"""What was run, and on what: noted when a run begins, completed when it ends."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Self

from secateur.evaluation.record import Run
from secateur.report.record import describe_machine, package_versions

_typed: ContextVar[tuple[str, ...] | None] = ContextVar("typed", default=None)


@contextmanager
def typed(arguments: Sequence[str]) -> Iterator[None]:
    """While the context is open, the command line is `secateur` with these arguments, whatever the process was."""
    token = _typed.set(("secateur", *arguments))
    try:
        yield
    finally:
        _typed.reset(token)


def command_line() -> str:
    """The command line as it was typed, quoted for a shell; of a script, without the folder that it lies in."""
    arguments = _typed.get()
    return shlex.join(arguments or (Path(sys.argv[0]).name, *sys.argv[1:]))


@dataclass(frozen=True, slots=True)
class Start:
    """The beginning of a run.

    Args:
        at: date and time in UTC.
        load_average: over the minute before.
    """

    at: datetime
    load_average: float | None

    @classmethod
    def now(cls) -> Self:
        """Call it before anything is loaded or measured."""
        return cls(datetime.now(UTC), load_average())

    def run(
        self,
        seconds: Mapping[str, float],
        packages: Sequence[str],
        seeds: Mapping[str, int],
        threads: int | None = None,
    ) -> Run:
        """The run that began here and has just ended.

        Args:
            seconds: by step, as `secateur.report.record.Steps` has them.
            packages: those whose versions matter, besides secateur's own.
            seeds: of all that was random, by what they are for.
            threads: that torch was held to while times were taken; None: as many as it uses now.
        """
        if threads is None:
            torch = sys.modules.get("torch")
            threads = torch.get_num_threads() if torch is not None else 1
        return Run(
            command_line(),
            version("secateur"),
            self.at.isoformat(timespec="seconds"),
            dict(seconds),
            describe_machine(),
            package_versions(*(name for name in packages if name != "secateur")),
            dict(seeds),
            threads,
            self.load_average,
        )


def load_average() -> float | None:
    """Of the machine over the last minute; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def hash_path(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder, of its files' names and bytes, in the order of the names.

    A splat scene's `meta.json` stands for its folder.

    Raises:
        FileNotFoundError: it is not there.
    """
    path = path.parent if path.name == "meta.json" else path
    if not path.is_dir():
        return _hash_file(path)
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{_hash_file(file)}\n".encode())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
