"""Writing files so that a crash, a full disk or Ctrl-C leaves the old file whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` on success, delete it on any failure."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(
    path: str | os.PathLike[str], *, index: str | None = None, former: Iterable[str] = ()
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; move each file in it onto `path` on success, delete it on any failure.

    Args:
        path: the folder, which may hold other files: they stay.
        index: the file that says which the others are. It is put in place after them.
        former: names of files of the version that is replaced. Those that the new one lacks are removed at the end.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        target.mkdir(exist_ok=True)
        entries = sorted(temporary.iterdir(), key=lambda entry: (entry.name == index, entry.name))
        for entry in entries:
            entry.replace(target / entry.name)
        for name in set(former) - {entry.name for entry in entries}:
            if (target / name).is_file():
                (target / name).unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
