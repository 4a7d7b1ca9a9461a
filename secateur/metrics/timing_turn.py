"""Measurements of time take turns: two processes that time at once would measure one another."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.console import messages

try:
    import fcntl
except ImportError:  # a system without advisory locks: there, nobody waits
    fcntl = None  # type: ignore[assignment]

_own = threading.RLock()
_depth = 0


@contextmanager
def timing_turn() -> Iterator[None]:
    """While the context is open, no other process of this user times anything on this machine.

    Waits for its turn, and says so on stderr. A process that dies gives its turn back. Within a turn, further turns are
    free. Where there are no locks, or the folder of temporary files cannot be written, nobody waits.
    """
    global _depth
    with _own, contextlib.ExitStack() as stack:
        if _depth == 0:
            stack.enter_context(_turn())
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


def lock_file() -> Path:
    """The file that processes of this user lock while they time."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"secateur-timing-{user}.lock"


@contextmanager
def _turn() -> Iterator[None]:
    if fcntl is None:
        yield
        return
    try:
        descriptor = os.open(lock_file(), os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError:
        yield
        return
    try:
        _wait_for(descriptor)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int) -> None:
    """Lock the file; a file system that knows no locks is let be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        messages.print("waiting: another process is timing on this machine", highlight=False, markup=False)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return
