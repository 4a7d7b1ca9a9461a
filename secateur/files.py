"""Writing files so that a crash, a full disk or Ctrl-C leaves the old file whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise an error where `path` can never be a folder to write into: now rather than after an hour of work.

    Raises:
        NotADirectoryError: it, or what it would lie in, is a file.
        PermissionError: it, or what it would be made in, may not be written to.
    """
    target = Path(path)
    nearest = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        what = "it" if nearest == target else nearest
        raise NotADirectoryError(f"{target} cannot be a folder: {what} is a file")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{target}: the folder {nearest} may not be written to")


@contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` on success, delete it on any failure.

    Raises:
        IsADirectoryError: `path` is a folder.
        NotADirectoryError, PermissionError: it cannot be written where it would lie.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder, and cannot be written as a file")
    check_folder(target.parent)
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

    Raises:
        NotADirectoryError, PermissionError: it cannot be a folder to write into.
    """
    target = Path(path)
    check_folder(target)
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
