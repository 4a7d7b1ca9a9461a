"""Measurements of time take turns: two processes that time at once would measure one another."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.console import messages

try:
    import fcntl
except ImportError:  # a system without advisory locks: there, nobody waits
    fcntl = None  # type: ignore[assignment]

PATIENCE_SECONDS = 600.0
_POLL_SECONDS = 0.1

_own = threading.RLock()
_depth = 0


@contextmanager
def timing_turn() -> Iterator[None]:
    """While the context is open, no other process of this user times anything on this machine.

    Waits for its turn, and says so on stderr; after ten minutes it goes on all the same, for the other process may have
    been stopped. A process that dies gives its turn back. Within a turn, further turns are free. Where there are no
    locks, or the folder of temporary files cannot be written, nobody waits.
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
        with contextlib.suppress(OSError):  # said outright: a process that was forked meanwhile has the file open, too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _wait_for(descriptor: int) -> None:
    """Lock the file, or give up after a while; a file system that knows no locks is let be."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    waiting = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not waiting:
                _say("waiting: another process is timing on this machine")
            waiting = True
        except OSError:
            return
        if time.monotonic() > deadline:
            _say(f"waited {PATIENCE_SECONDS:.0f} s for another process that is timing: going on beside it")
            return
        time.sleep(_POLL_SECONDS)


def _say(text: str) -> None:
    messages.print(text, highlight=False, markup=False, soft_wrap=True)
